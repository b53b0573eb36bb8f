//! What `--output`, `--tag` and `--label` mean.

use std::path::{Path, PathBuf};

use kiln_image::ImageName;

/// Where and how a result is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputTo {
    pub(crate) kind: OutputKind,
    pub(crate) dest: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// A directory in the OCI layout.
    OciLayout,
    /// That in one tar file.
    OciArchive,
    /// What `docker load` reads.
    DockerArchive,
    /// The tree in a tar file.
    Tar,
    /// The tree in a directory.
    Dir,
}

impl OutputKind {
    /// Returns true for files that are not packed unless asked for: their readers unpack them whole.
    pub(crate) fn is_plain_archive(self) -> bool {
        matches!(self, Self::DockerArchive | Self::Tar)
    }
}

impl OutputTo {
    /// Returns true if this is written to standard output.
    pub(crate) fn is_stdout(&self) -> bool {
        self.dest == Path::new("-")
    }
}

/// Parses `type=TYPE,dest=PATH`. A path with a comma in it comes last.
pub(crate) fn parse(text: &str) -> Result<OutputTo, String> {
    let mut kind = None;
    let mut dest = None;
    let mut rest = text;
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').ok_or_else(|| format!("`{rest}` is not of the form NAME=VALUE"))?;
        let (value, after) = match name {
            "dest" if !value.contains(",type=") => (value, ""),
            _ => value.split_once(',').unwrap_or((value, "")),
        };
        rest = after;
        match name {
            "type" => kind = Some(value),
            "dest" if !value.is_empty() => dest = Some(value),
            "dest" => return Err("dest is empty".to_owned()),
            _ => return Err(format!("there is no `{name}`; write it as type=oci,dest=image.tar")),
        }
    }
    let dest = PathBuf::from(dest.ok_or("it lacks `dest=PATH`; `-` is standard output")?);
    let is_file = dest == Path::new("-") || dest.extension().is_some_and(|extension| extension == "tar");
    let kind = match kind.ok_or("it lacks `type=TYPE`: oci, docker, tar or dir")? {
        "oci" if is_file => OutputKind::OciArchive,
        "oci" => OutputKind::OciLayout,
        "oci-archive" => OutputKind::OciArchive,
        "docker" | "docker-archive" => OutputKind::DockerArchive,
        "tar" => OutputKind::Tar,
        // As Docker's own builder calls it.
        "dir" | "local" if dest != Path::new("-") => OutputKind::Dir,
        "dir" | "local" => return Err("a directory cannot go to standard output; use type=tar".to_owned()),
        other => return Err(format!("there is no type `{other}`; there are: oci, oci-archive, docker, tar, dir")),
    };
    Ok(OutputTo { kind, dest })
}

/// Parses the name of an image. What has a digest is named already.
pub(crate) fn parse_name(text: &str) -> Result<ImageName, String> {
    let name: ImageName = text.parse().map_err(|error: kiln_image::NameError| error.to_string())?;
    match name.digest() {
        Some(_) => Err("a digest cannot be chosen; give a tag".to_owned()),
        None => Ok(name),
    }
}

/// Parses `NAME=VALUE`.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (OutputKind, String) {
        let output = parse(text).expect(text);
        (output.kind, output.dest.display().to_string())
    }

    #[test]
    fn outputs_are_told_by_type_and_dest() {
        assert_eq!(parsed("type=oci,dest=out"), (OutputKind::OciLayout, "out".to_owned()));
        assert_eq!(parsed("type=oci,dest=out.tar"), (OutputKind::OciArchive, "out.tar".to_owned()));
        assert_eq!(parsed("dest=out,type=oci-archive"), (OutputKind::OciArchive, "out".to_owned()));
        assert_eq!(parsed("type=oci,dest=-"), (OutputKind::OciArchive, "-".to_owned()));
        assert_eq!(parsed("type=docker,dest=a,b=c"), (OutputKind::DockerArchive, "a,b=c".to_owned()));
        assert_eq!(parsed("type=local,dest=d"), (OutputKind::Dir, "d".to_owned()));
    }

    #[test]
    fn mistakes_in_outputs_are_explained() {
        let mut told = String::new();
        for text in ["", "x", "type=oci", "dest=x", "type=oci,dest=", "type=zip,dest=x", "type=dir,dest=-", "kind=oci"]
        {
            told += &format!("{text:?}: {}\n", parse(text).expect_err(text));
        }
        insta::assert_snapshot!(told);
    }
}
