# Gets the model once: it stays on the server's own claim, and a start that finds
# it there, whole, needs no network. Nothing that fails its checksum gets the
# model's name.
set -eu
model=${MODEL_DIR:-/models}/model.gguf

is_good() {
  [ -f "$1" ] && echo "$MODEL_SHA256  $1" | sha256sum -c >/dev/null 2>&1
}

if is_good "$model"; then exit 0; fi
# What an interrupted try got is gone on with.
curl --fail --location --silent --show-error --retry 5 --continue-at - \
  --output "$model.part" "$MODEL_URL" || {
  # Also where there is nothing left to get: the checksum tells.
  echo "getting $MODEL_URL ended with $?" >&2
}
if ! is_good "$model.part"; then
  found=$(sha256sum "$model.part" 2>/dev/null || echo nothing)
  rm -f "$model.part"
  echo "$MODEL_URL: expected SHA-256 $MODEL_SHA256, found ${found%% *}" >&2
  exit 1
fi
mv "$model.part" "$model"
