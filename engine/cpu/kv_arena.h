// Memory for K/V blocks of one size, in slabs on huge pages. Decoding reads
// every block of a sequence once for each token: on 4 KiB pages most of that
// time goes into TLB misses, and a huge page for each block would waste a part
// of it and put equal tiles of all blocks into the same cache sets.
#ifndef XCACHE_ENGINE_CPU_KV_ARENA_H_
#define XCACHE_ENGINE_CPU_KV_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe. Shared by the engine and its blocks, which may outlive it.
class KvArena {
 public:
  explicit KvArena(size_t block_bytes);
  ~KvArena();  // REQUIRES: every block was freed
  KvArena(const KvArena&) = delete;
  KvArena& operator=(const KvArena&) = delete;

  // 64-byte aligned; what is in it is unspecified. Aborts where the system has
  // no memory left, as new does.
  void* Allocate();
  void Free(void* block);

  // What a block takes, and what has been taken from the system for blocks
  // that are in use or kept at hand.
  size_t block_bytes() const { return block_bytes_; }
  size_t resident_bytes() const;

 private:
  // Free, without memory.
  struct Empty {
    uint8_t* block;
    bool no_huge_pages;
  };
  struct Slab {
    void* mapping;
    size_t mapped_bytes;
    int used = 0;
    std::vector<uint8_t*> resident;  // free, their memory kept
    std::vector<Empty> empty;
  };

  const size_t block_bytes_;
  const int slab_blocks_;

  mutable Mutex mu_;
  // By the address of the first block. Allocate takes the first that has room,
  // so that the last ones become empty and go.
  std::map<uint8_t*, Slab> slabs_ XC_GUARDED_BY(mu_);
  int used_ XC_GUARDED_BY(mu_) = 0;
  int resident_ XC_GUARDED_BY(mu_) = 0;       // free blocks that have memory
  int no_huge_pages_ XC_GUARDED_BY(mu_) = 0;  // empty blocks that are so
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_KV_ARENA_H_
