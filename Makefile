# `make demo`: set up and run the main job. `make test`: set up and pass all tests.

# What a C library in a crate needs to compile.
BUILD_PACKAGES = gcc libc6-dev make
DEMO_PACKAGES = $(BUILD_PACKAGES) mmdebstrap ca-certificates uidmap
# busybox: base images of tests. mkfs: stores on real filesystems. binutils, qemu: a guest that has ZFS, compiled for it.
# uidmap: builds of users without root. strace: dying between two system calls. skopeo, umoci: images made and unpacked by others.
# git: sources of jobs. buildah, docker.io, podman: programs that keep images. docker-registry: a registry, also with certificates, made by openssl.
# systemd: it looks at our units, and need not run. postgresql: a database that schedulers share.
TEST_PACKAGES = $(BUILD_PACKAGES) binutils btrfs-progs crun iproute2 passt buildah busybox-static mmdebstrap ca-certificates docker-registry \
	docker.io e2fsprogs git libelf1 mount openssl perl podman postgresql procps qemu-system-x86 runc skopeo strace systemd uidmap umoci util-linux xfsprogs xz-utils zstd
BENCH_PACKAGES = $(DEMO_PACKAGES) btrfs-progs bubblewrap buildah crun curl docker-registry docker.io golang-github-containers-common runc \
	postgresql python3 rsync skopeo time umoci xfsprogs

.PHONY: all demo test check bench real-life
all:
	cargo build --release --locked

demo:
	scripts/need-packages $(DEMO_PACKAGES)
	scripts/need-cargo
	cargo build --release --locked
	scripts/demo target/release/kiln

test:
	scripts/need-packages $(TEST_PACKAGES)
	scripts/need-cargo nextest
	[ "$$(id -u)" -ne 0 ] || scripts/guest/make
	cargo nextest run --workspace --locked
	cargo test --workspace --locked --doc
	scripts/check-docs

check:
	scripts/need-packages $(BUILD_PACKAGES)
	scripts/need-cargo
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	cd fuzz && cargo fmt --check && RUSTC_BOOTSTRAP=1 cargo check --locked

bench:
	scripts/need-packages $(BENCH_PACKAGES)
	scripts/need-cargo
	cargo build --release --locked
	cargo build --release --locked -p kiln-sandbox --bins --example measure
	cargo build --release --locked -p kiln-scheduler --example load
	bench/run

# Builds of all kinds, from Debian's mirrors and the registries of languages: a quarter of an hour.
real-life:
	scripts/need-packages $(DEMO_PACKAGES)
	scripts/need-cargo
	cargo build --release --locked
	scripts/real-life target/release/kiln
