//! Programs that keep credentials for Docker and Podman: `docker-credential-NAME get`, the host on standard input, JSON on
//! standard output.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::credentials::Credential;
use super::{RegistryError, answer};

/// Some ask the user to unlock a key ring.
const TIME: Duration = Duration::from_secs(60);
/// More than any token.
const OUTPUT_BYTES: u64 = 64 << 10;
/// What a helper calls the user if the secret is a token.
const TOKEN_USER: &str = "<token>";
/// How helpers say that they know nothing of the host.
const KNOWS_NOTHING: &[&str] = &["credentials not found", "no credentials server url", "no credentials username"];

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks the program `docker-credential-NAME` for the credentials of `key`; `None` if it knows none. `path` is the file that
/// names the program. When cancelled, the program is killed.
///
/// # Errors
///
/// It is no name, cannot be run, fails, or takes too long.
pub(super) async fn ask(
    name: &str,
    key: &str,
    path: &Path,
    search: Option<&OsStr>,
) -> Result<Option<Credential>, RegistryError> {
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        let reason = "the name of a program that keeps credentials has letters, digits, `-`, `_` and `.`".to_owned();
        return Err(RegistryError::BadAuthFile { path: path.to_owned(), reason });
    }
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| RegistryError::Helper { program: program.clone(), host: key.to_owned(), reason };
    let run = tokio::time::timeout(TIME, run(&find(&program, search), key)).await;
    let (succeeded, output, said) = match run {
        Ok(Ok(run)) => run,
        Ok(Err(source)) => return Err(RegistryError::RunHelper { program, host: key.to_owned(), source }),
        Err(_) => return Err(failed(format!("it takes more than {} s", TIME.as_secs()))),
    };
    if succeeded {
        let Answer { username, secret } =
            // The parser's own message may quote the secret.
            serde_json::from_slice(&output).map_err(|_| failed("its answer is not the expected JSON".to_owned()))?;
        return Ok(match (&*username, &*secret) {
            (_, "") => None,
            (TOKEN_USER, _) => Some(Credential::IdentityToken(secret)),
            _ => Some(Credential::Basic { user: username, password: secret }),
        });
    }
    // They report their failures on standard output, where no secret is then.
    let said = answer::printable(&[output, said].concat());
    let lower = said.to_ascii_lowercase();
    if KNOWS_NOTHING.iter().any(|text| lower.contains(text)) { Ok(None) } else { Err(failed(said)) }
}

/// Runs the program to its end. Returns whether it succeeded, its standard output, its standard error.
async fn run(program: &OsStr, key: &str) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (input, output, said) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut input) = input {
            // One that does not want to know fails by itself.
            let _ = input.write_all(key.as_bytes()).await;
        }
    };
    let ((), output, said) = tokio::join!(write, read(output), read(said));
    Ok((child.wait().await?.success(), output?, said?))
}

/// Reads so much as there may be; the rest is lost on a closed pipe.
async fn read(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Returns the program's path in `search`; without one, or if it is not there, its name.
fn find(program: &str, search: Option<&OsStr>) -> OsString {
    let Some(search) = search else { return program.into() };
    let mut paths = std::env::split_paths(search).map(|dir| dir.join(program));
    // Not looked for elsewhere then: an absolute path of something that is not there gives the right error.
    paths.find(|path| path.is_file()).unwrap_or_else(|| Path::new("/nonexistent").join(program)).into()
}
