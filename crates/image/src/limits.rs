//! How much an image may make us do. Generous: they stop attacks, not large images.

/// Bounds on one image. What is beyond them is refused as the image's fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Headers in one archive, those that only extend the next one included.
    pub entries: u64,
    /// Bytes that one layer or archive may unpack to, holes of sparse files included.
    pub unpacked_bytes: u64,
    /// How many times its stored length a layer or archive may unpack to, if that is more than `dense_bytes`.
    pub ratio: u64,
    /// Bytes from which on `ratio` counts: little zeros pack better than much data.
    pub dense_bytes: u64,
    /// Layers of one image. While they are made, each costs an open file descriptor, of which a process has 1024 at first.
    pub layers: usize,
    /// Bytes of one extended header: long names, PAX records, maps of sparse files.
    pub extended_header_bytes: u64,
    /// Directories inside each other. Each costs an open file descriptor.
    pub depth: usize,
    /// Bytes remembered until the end of a layer: names of directories whose times are set last.
    pub remembered_bytes: usize,
    /// Bytes of one JSON document: index, manifest, configuration.
    pub document_bytes: u64,
    /// Values in one configuration. A byte of JSON can become hundreds in memory.
    pub config_values: usize,
    /// Indexes inside each other.
    pub index_depth: usize,
    /// Bytes of memory that a decompressor may ask for.
    pub decompressor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            unpacked_bytes: 1 << 40,
            // Real layers stay below 20; a disk image that is almost all zeros may reach 100.
            ratio: 200,
            dense_bytes: 1 << 30,
            // Docker makes 127 at most.
            layers: 500,
            extended_header_bytes: 1 << 20,
            depth: 256,
            remembered_bytes: 256 << 20,
            // What registries accept for a manifest.
            document_bytes: 4 << 20,
            // Real ones have hundreds.
            config_values: 20_000,
            index_depth: 4,
            // What `xz -9` needs. Windows of zstd are powers of two, so 64 MiB: `--ultra -22` has twice as much, `--long` too,
            // and a machine that imports several images at once has not.
            decompressor_bytes: 66 << 20,
        }
    }
}
