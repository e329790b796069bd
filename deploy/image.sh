#!/usr/bin/env bash
# What `make image` does: builds the container image with buildah, without a daemon, without
# pulling anything and without touching the user's container storage.
set -euo pipefail
platform=$1 version=$2 reference=$3 output=$(realpath -m -- "$4")
cd "$(dirname "$0")/.."

case $platform in
linux/amd64 | linux/arm64) ;;
*)
	echo "PLATFORM is $platform, must be linux/amd64 or linux/arm64" >&2
	exit 1
	;;
esac

if ! command -v buildah >/dev/null; then
	sudo=
	if [ "$(id -u)" != 0 ]; then sudo="sudo -n"; fi
	if ! command -v apt-get >/dev/null || ! $sudo true 2>/dev/null; then
		echo "the image is built with buildah, which is missing: please install the package buildah of your distribution" >&2
		exit 1
	fi
	echo "installing buildah" >&2
	$sudo apt-get -qq update
	$sudo apt-get -qq -o DPkg::Lock::Timeout=300 --no-install-recommends install --yes buildah >/dev/null
fi

# The same commit makes the same image.
revision=$(git rev-parse HEAD 2>/dev/null || true)
created=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

work=$(mktemp -d)
# buildah, unless it is root's, leaves directories that nobody may write to.
trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
mkdir "$work/context"
CGO_ENABLED=0 GOOS=linux GOARCH=${platform#linux/} go build -trimpath -ldflags="-s -w -X main.release=$version" -o "$work/context/bucketwarden" .

# Everything that buildah keeps and reads of the user's is in $work.
buildah=(env -u XDG_CONFIG_HOME -u XDG_DATA_HOME HOME="$work" TMPDIR="$work" XDG_RUNTIME_DIR="$work"
	buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
"${buildah[@]}" build --quiet --isolation chroot --platform "$platform" --timestamp "$created" --identity-label=false \
	--build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg CREATED="$(date -u -d "@$created" +%Y-%m-%dT%H:%M:%SZ)" \
	--file deploy/Containerfile --tag image "$work/context" >/dev/null
"${buildah[@]}" push --quiet image "oci-archive:$work/image.tar:$reference"
mv -T "$work/image.tar" "$output"
echo "$reference for $platform: $output, $(($(stat -c %s "$output") >> 20)) MiB"
