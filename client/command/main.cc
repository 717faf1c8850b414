#include "client/command/commands.h"

int main(int argc, char** argv) { return xcache::command::Main(argc, argv); }
