#!/usr/bin/env bash
# run.sh starts a registry and a node on this machine, pushes two images, pulls
# and runs them, and stays up until Ctrl-C. It uses bin/berth. LISTEN chooses
# another address.
set -euo pipefail
cd "$(dirname "$0")/.."
berth=$PWD/bin/berth
listen=${LISTEN:-127.0.0.1:5000}
work=$(mktemp -d -t berth-run.XXXXXX)
export BERTH_REGISTRY=$listen BERTH_SOCKET=$work/node.sock
server=
end() {
  trap - EXIT INT TERM
  if [[ $server ]]; then kill "$server" 2>/dev/null && wait "$server" || true; fi
  rm -rf "$work"
}
trap end EXIT
trap 'exit 0' INT TERM
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
try() { say "${@/#"$berth"/berth}"; "$@"; }

say berth up --listen $listen --data "$work/data" --socket "$BERTH_SOCKET"
"$berth" up --listen $listen --data "$work/data" --socket "$BERTH_SOCKET" 2> >(tee "$work/log" >&2) &
server=$!
ready='registry is ready'
((EUID == 0)) && ready='node is ready'
# The log says when it answers; tail ends with the server.
grep -qm1 "$ready" <(tail --follow=name --retry --lines=+1 --pid="$server" "$work/log" 2>/dev/null) || exit 1

mkdir -p "$work/berth"
cp "$berth" "$work/berth/berth"
images=(berth)
try "$berth" repo push "dir:$work/berth" demo/berth:1 --entrypoint /berth --cmd version
if busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1; then
  mkdir -p "$work/busybox/bin" && cp "$busybox" "$work/busybox/bin/busybox"
  try "$berth" repo push "dir:$work/busybox" demo/busybox:1 --entrypoint /bin/busybox --cmd sh
  images+=(busybox)
fi
if ((EUID != 0)); then
  echo; echo "The node needs root: run sudo make run to see the images run."
else
  for image in "${images[@]}"; do try "$berth" pull "demo/$image:1"; done
  try "$berth" run --rm --network none demo/berth:1
  [[ ${images[*]} != *busybox* ]] || try "$berth" run --rm --network none demo/busybox:1 echo "hello from a container"
  [[ ${images[*]} != *busybox* ]] || try "$berth" run --rm --network none demo/busybox:1 cat /proc/self/uid_map
fi
cat <<TRY

Registry and node stay up until Ctrl-C. In another terminal:
  export BERTH_REGISTRY=$listen BERTH_SOCKET=$BERTH_SOCKET
  bin/berth repo ls
  bin/berth images
  docker -H unix://$BERTH_SOCKET ps -a
  skopeo inspect --tls-verify=false docker://$listen/demo/berth:1
TRY
wait "$server"
