#!/usr/bin/env bash
# Fetches published checkpoints into models/. A file appears under its name only when it is whole and verified.
set -euo pipefail

usage() {
  cat <<'END'
Usage: ./download_models.sh [OPTIONS] [small|medium|large|all]...

Fetches SmolVLM checkpoints (safetensors, configuration, tokenizer, templates) from the Hugging Face hub into
models/NAME. Running it again goes on where it was interrupted, and verifies what is there. Default: small.

  size    SmolVLM                   with --smolvlm2
  small   SmolVLM-256M-Instruct     SmolVLM2-256M-Video-Instruct
  medium  SmolVLM-500M-Instruct     SmolVLM2-500M-Video-Instruct
  large   SmolVLM-Instruct (2.2B)   SmolVLM2-2.2B-Instruct

  --smolvlm2         the second generation
  --onnx LIST        ONNX graphs, too: fp32, fp16, int8, uint8, quantized, q4, q4f16, bnb4, separated by commas
  --dir DIR          where the checkpoints go [default: models, beside this script]
  --revision REV     branch, tag or commit [default: main]
  --help             this text

Environment: HF_ENDPOINT, another hub [default: https://huggingface.co]; HF_TOKEN, for what needs one.
Exit codes: 0 all there and verified, 1 an error, 2 a wrong argument, 130 interrupted.
END
}

readonly MAX_TRIES=4 # without a byte of progress
root=$(cd "$(dirname "$0")" && pwd)
manifest=$root/models/manifest.sha256 # `DIGEST  NAME/FILE` of what is known without asking the hub
models=$root/models family=smolvlm onnx='' revision=main sizes=''
endpoint=${HF_ENDPOINT:-https://huggingface.co} endpoint=${endpoint%/}
token=${HF_TOKEN:-}
again="$0 $*"

die() { echo "download_models.sh: $1" >&2; exit "${2:-1}"; }
interrupted() {
  echo "download_models.sh: interrupted; partial files stay in .parts; to go on: $again" >&2
  exit 130
}

checkpoint() {
  case $family-$1 in
    smolvlm-small) echo SmolVLM-256M-Instruct ;;
    smolvlm-medium) echo SmolVLM-500M-Instruct ;;
    smolvlm-large) echo SmolVLM-Instruct ;;
    smolvlm2-small) echo SmolVLM2-256M-Video-Instruct ;;
    smolvlm2-medium) echo SmolVLM2-500M-Video-Instruct ;;
    smolvlm2-large) echo SmolVLM2-2.2B-Instruct ;;
  esac
}

# The hub's suffix of an ONNX variant.
suffix() {
  case $1 in
    fp32 | f32) ;;
    fp16 | f16) echo _fp16 ;;
    int8 | uint8 | quantized | q4 | q4f16 | bnb4) echo "_$1" ;;
    *) die "--onnx: \"$1\" is none of fp32, fp16, int8, uint8, quantized, q4, q4f16, bnb4" 2 ;;
  esac
}

size() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

# digest sha256|git FILE; `git` is the name that git gives to a file's content, which the hub tells for small files.
digest() {
  case $1 in
    sha256) sha256sum <"$2" ;;
    git) { printf 'blob %d\0' "$(size "$2")" && cat "$2"; } | sha1sum ;;
  esac | cut -d ' ' -f 1
}

# get URL FILE [CURL OPTION]...: prints the HTTP status. The token goes through standard input, since others can
# read a command line; curl leaves it out when another host is redirected to.
get() {
  local url=$1 file=$2 redirect='=https'
  shift 2
  case $url in http:*) redirect='=http,https' ;; esac
  { [ -z "$token" ] || printf 'header = "Authorization: Bearer %s"\n' "$token"; } |
    curl --config - --location --fail --proto '=http,https' --proto-redir "$redirect" --connect-timeout 20 \
      --speed-limit 1 --speed-time 60 --output "$file" --write-out '%{http_code}' "$@" "$url"
}

# fetch REPOSITORY WHAT URL FILE [CURL OPTION]...: tries again after what may pass, as long as it gets on.
fetch() {
  local repository=$1 what=$2 url=$3 file=$4 tries=0 before status code
  shift 4
  while :; do
    before=$(size "$file") status=0
    code=$(get "$url" "$file" "$@") || status=$?
    case $status:$code in
      0:*) return ;;
      22:401 | 22:403)
        if [ -n "$token" ]; then die "$what: HTTP $code: HF_TOKEN gives no access to $repository; its terms: $endpoint/$repository"; fi
        die "$what: HTTP $code: $repository does not exist or needs a token: set HF_TOKEN; its terms: $endpoint/$repository" ;;
      22:404) die "$what: HTTP 404: $url is not there" ;;
      22:408 | 22:416 | 22:429 | 22:5??) ;;
      22:*) die "$what: HTTP $code from $url" ;;
      23:*) die "$what: $(available "$(dirname "$file")") bytes available where $(dirname "$file") is, which is not enough or not writable" ;;
      33:*) ;;                                   # no ranges here
      [567]:* | 18:* | 28:* | 35:* | 5[256]:* | 92:*) ;; # no way to the host, or cut
      *) die "$what: curl ended with $status; man curl says why" ;;
    esac
    case $status:$code in 33:* | 22:416) rm -f "$file" ;; esac
    if [ "$(size "$file")" -gt "$before" ]; then tries=0; fi
    tries=$((tries + 1))
    [ "$tries" -lt "$MAX_TRIES" ] || die "$what: no answer from $url in $MAX_TRIES tries (HTTP $code, curl $status); to go on: $again"
    echo "$what: cut (HTTP $code, curl $status) at $(size "$file") bytes; again in $((1 << (tries - 1))) s" >&2
    sleep $((1 << (tries - 1)))
  done
}

available() { df -Pk "$1" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'; }

# The hub's list of files, JSON, to lines of `PATH SIZE KIND DIGEST`; a path with a surprising character is left out.
tree() {
  awk '
    { text = text $0 "\n" }
    END {
      while (match(text, /^[ \t\r\n]*("([^"\\]|\\.)*"|[-+.0-9eE]+|true|false|null|[][{}:,])/)) {
        token = substr(text, 1, RLENGTH); text = substr(text, RLENGTH + 1); sub(/^[ \t\r\n]*/, "", token)
        if (token == "[" || token == "]") value = 0
        else if (token == "{") { depth++; key = ""; value = 0; if (depth == 1) split("", file); else parent = last }
        else if (token == "}") {
          if (depth == 1 && file["type"] == "file" && file["path"] ~ /^[A-Za-z0-9_][A-Za-z0-9._\/-]*$/ && file["path"] !~ /\.\./ &&
              file["size"] ~ /^[0-9]+$/) {
            if (file["lfs.oid"] ~ /^[0-9a-f]+$/ && length(file["lfs.oid"]) == 64) print file["path"], file["size"], "sha256", file["lfs.oid"]
            else if (file["oid"] ~ /^[0-9a-f]+$/ && length(file["oid"]) == 40) print file["path"], file["size"], "git", file["oid"]
          }
          depth--; key = ""
        }
        else if (token == ":") { last = key; value = 1 }
        else if (token == ",") { key = ""; value = 0 }
        else {
          gsub(/^"|"$/, "", token)
          if (value) { file[(depth > 1 ? parent "." : "") last] = token; value = 0 } else key = token
        }
      }
      if (text !~ /^[ \t\r\n]*$/ || depth != 0) exit 1
    }' "$1"
}

# Those of the listed files that are asked for.
wanted() {
  local list=$1 name=$2 variant graph file
  awk '$1 ~ /^[^\/]*\.(json|jinja|safetensors)$/ || $1 == "merges.txt"' "$list"
  for variant in ${onnx//,/ }; do
    for graph in vision_encoder embed_tokens decoder_model_merged; do
      file=onnx/$graph$(suffix "$variant").onnx
      awk -v file="$file" '$1 == file { found = 1 } $1 == file || index($1, file "_data") == 1 { print } END { exit !found }' "$list" ||
        die "--onnx $variant: $name has no $file at revision $revision"
    done
  done
}

# The digest is in a part's name: what is resumed is what was begun, whatever happened on the hub since. Parts lie beside
# the checkpoint's folders, since the library refuses strange files in onnx/.
part() { echo "$1/.parts/${2//\//_}.${3:0:12}.part"; }

# Fills $work/NAME.plan with `PATH SIZE KIND DIGEST` of what is to be fetched, and .record with the verified rest.
plan() {
  local name=$1 dir=$models/$1 path bytes kind expected found known
  fetch "HuggingFaceTB/$name" "$name" "$endpoint/api/models/HuggingFaceTB/$name/tree/${revision//\//%2F}?recursive=true" "$work/json" --silent
  tree "$work/json" >"$work/list" || die "$name: $endpoint sent a list of files that is no JSON"
  wanted "$work/list" "$name" | sort -u >"$work/wanted"
  for path in config.json tokenizer.json .safetensors; do
    grep -qF "$path " "$work/wanted" || die "$name: no $path among the files at revision $revision"
  done
  : >"$work/$name.plan"
  : >"$work/$name.record"
  if [ -f "$dir/SHA256SUMS" ]; then
    while read -r expected path; do
      [ -f "$dir/$path" ] || continue # removed by hand
      found=$(digest sha256 "$dir/$path")
      [ "$found" = "$expected" ] ||
        die "$dir/$path: SHA-256 is $found, SHA256SUMS says $expected; remove the file to fetch it again"
      echo "$expected  $path" >>"$work/$name.record"
    done <"$dir/SHA256SUMS"
  fi
  while read -r path bytes kind expected; do
    known=$(awk -v file="$name/$path" '$2 == file { print $1 }' "$manifest")
    if [ -n "$known" ]; then
      [ "$kind" != sha256 ] || [ "$known" = "$expected" ] ||
        die "$name/$path: the hub says SHA-256 $expected, $manifest says $known"
      kind=sha256 expected=$known
    fi
    if [ -f "$dir/$path" ]; then
      if [ "$(digest "$kind" "$dir/$path")" = "$expected" ]; then
        grep -q "  $path\$" "$work/$name.record" || echo "$(digest sha256 "$dir/$path")  $path" >>"$work/$name.record"
        continue
      fi
      grep -q "  $path\$" "$work/$name.record" ||
        die "$dir/$path: is not the hub's file, and not fetched by this script; move it away to fetch the hub's"
      echo "$name/$path: has changed on the hub" >&2
    fi
    echo "$path $bytes $kind $expected" >>"$work/$name.plan"
    needed=$((needed + bytes - $(size "$(part "$dir" "$path" "$expected")")))
  done <"$work/wanted"
}

download() {
  local name=$1 path bytes kind expected part found bar=--silent
  if [ -t 2 ]; then bar=--progress-bar; fi
  while read -r path bytes kind expected <&3; do
    part=$(part "$models/$name" "$path" "$expected")
    mkdir -p "$(dirname "$part")"
    echo "$name/$path ($bytes bytes)"
    if [ "$(size "$part")" -gt "$bytes" ]; then rm -f "$part"; fi
    if [ "$bytes" = 0 ]; then : >"$part"; fi
    if [ "$(size "$part")" -lt "$bytes" ]; then
      fetch "HuggingFaceTB/$name" "$name/$path" "$endpoint/HuggingFaceTB/$name/resolve/${revision//\//%2F}/$path" "$part" \
        --continue-at - $bar
    fi
    found=$(size "$part")
    [ "$found" -ge "$bytes" ] || die "$name/$path: $found bytes came, the hub's list says $bytes; to go on: $again"
    found=$(digest "$kind" "$part")
    if [ "$found" != "$expected" ]; then
      rm -f "$part"
      die "$name/$path: digest is $found, $expected was expected; nothing was kept"
    fi
  done 3<"$work/$name.plan"
}

# Everything is there: give it its names, and write down the digests.
publish() {
  local name=$1 dir=$models/$1 path bytes kind expected sum
  while read -r path bytes kind expected; do
    sum=$(digest sha256 "$(part "$dir" "$path" "$expected")")
    awk -v file="$path" '$2 != file' "$work/$name.record" >"$work/others"
    { cat "$work/others" && echo "$sum  $path"; } >"$work/$name.record"
  done <"$work/$name.plan"
  mkdir -p "$dir/.parts"
  sort -k 2 "$work/$name.record" >"$dir/.parts/SHA256SUMS.part"
  # Not to be interrupted between a file and its record.
  trap '' INT TERM HUP
  while read -r path bytes kind expected; do
    mkdir -p "$(dirname "$dir/$path")"
    mv -f "$(part "$dir" "$path" "$expected")" "$dir/$path"
  done <"$work/$name.plan"
  mv -f "$dir/.parts/SHA256SUMS.part" "$dir/SHA256SUMS"
  trap interrupted INT TERM HUP
  rmdir "$dir/.parts" 2>/dev/null || true
  echo "$dir: $(wc -l <"$dir/SHA256SUMS" | tr -d ' ') files, verified"
}

while [ $# -gt 0 ]; do
  case $1 in
    small | medium | large) sizes="$sizes $1" ;;
    all) sizes='small medium large' ;;
    --smolvlm2) family=smolvlm2 ;;
    --onnx | --dir | --revision)
      [ -n "${2:-}" ] || die "$1: a value is missing" 2
      case $1 in --onnx) onnx=$2 ;; --dir) models=${2%/} ;; --revision) revision=$2 ;; esac
      shift ;;
    --help | -h) usage; exit ;;
    *) die "\"$1\" is none of small, medium, large, all; see --help" 2 ;;
  esac
  shift
done
for variant in ${onnx//,/ }; do suffix "$variant" >/dev/null; done
case $endpoint in http://* | https://*) ;; *) die "HF_ENDPOINT: \"$endpoint\" does not begin with https://" 2 ;; esac
case $token in *[!A-Za-z0-9_.-]*) die 'HF_TOKEN: holds a character that no token has' 2 ;; esac
case $revision in *[!A-Za-z0-9_./-]* | *..*) die "--revision: \"$revision\" is no branch, tag or commit" 2 ;; esac
for tool in curl sha256sum sha1sum awk; do command -v "$tool" >/dev/null || die "$tool: is not installed"; done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap interrupted INT TERM HUP
mkdir -p "$models"
needed=0 names=''
for size in ${sizes:-small}; do names="$names $(checkpoint "$size")"; done
for name in $names; do plan "$name"; done
free=$(available "$models")
[ "$needed" -le "$free" ] || die "$models: $needed bytes needed, $free available"
for name in $names; do
  download "$name"
  publish "$name"
done
