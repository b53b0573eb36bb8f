//! Exports a directory as an image, to see how long that takes: `export DIRECTORY LAYOUT [gzip|zstd|none]`.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_image::Quiet;
use kiln_image::export::{
    Base, Compression, Destination, Forgetful, History, Image, LayerSource, Opened, Options, Overrides, Step, export,
};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (tree, layout, compression) = match &*arguments {
        [tree, layout] => (tree, layout, Compression::Gzip),
        [tree, layout, packed] => match &**packed {
            "gzip" => (tree, layout, Compression::Gzip),
            "zstd" => (tree, layout, Compression::Zstd),
            "none" => (tree, layout, Compression::None),
            other => return Err(format!("unknown compression `{other}`").into()),
        },
        _ => return Err("usage: export DIRECTORY LAYOUT [gzip|zstd|none]".into()),
    };
    let tree = PathBuf::from(tree);
    let open = move || Ok(Opened { below: None, tree: std::fs::File::open(&tree)?.into(), own: None });
    let layer = LayerSource { key: "only".to_owned(), open: Box::new(open) };
    let image = Image {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        variant: None,
        base: Base::default(),
        steps: vec![Step { history: History::default(), layer: Some(layer) }],
        overrides: Overrides::default(),
        created_ms: 0,
        names: Vec::new(),
    };
    let options = Options { compression, source_date_epoch: None, squash: false, temp_dir: std::env::temp_dir() };
    let destination = Destination::OciLayout { dir: PathBuf::from(layout), tag: None };
    let cancel = CancellationToken::new();
    let written = export(image, destination, options, Arc::new(Forgetful), Arc::new(Quiet), &cancel).await?;
    println!("{written:?}");
    Ok(())
}
