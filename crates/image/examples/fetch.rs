//! `fetch REF DIR`: fetches a base image into an empty directory, for trying out and measuring.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kiln_image::{Fetcher, ForgetfulDigests, Images, Progress, Reference};
use tokio_util::sync::CancellationToken;

struct Stderr;

impl Progress for Stderr {
    fn bytes(&self, _done: u64, _total: u64) {}

    fn line(&self, text: &str) {
        eprintln!("{text}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, reference, into] = &args[..] else { return Err("usage: fetch REF DIR".into()) };
    let images = Images::default();
    let start = Instant::now();
    let reference = Reference::parse(reference.as_bytes(), &std::env::current_dir()?)?;
    let resolved = images.resolve(&reference, None, Arc::new(ForgetfulDigests)).await?;
    println!("{} ({:?})", resolved.identity, start.elapsed());
    let (temp, cancel) = (std::env::temp_dir(), CancellationToken::new());
    let mut layers = images.fetch(&resolved, 0, &temp, Arc::new(Stderr), &cancel).await?;
    for _ in 0..resolved.layers.len().max(1) {
        layers.next(Path::new(into)).await?;
    }
    println!("{:?} ({:?})", resolved.config, start.elapsed());
    Ok(())
}
