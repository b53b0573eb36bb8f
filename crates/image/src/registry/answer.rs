//! Reads what comes back, within bounds, and turns refusals into errors.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde::Deserialize;

use super::http;
use super::retry::{Again, Failure, Speed};
use super::{Patience, RegistryError};

/// So much of an error's text is read.
const REFUSAL_BYTES: usize = 8 << 10;
/// So much of it is shown.
const SHOWN_CHARACTERS: usize = 300;

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(
    mut response: Response,
    host: &str,
    what: &str,
    limit: u64,
    patience: &Patience,
) -> Result<Vec<u8>, Failure> {
    let too_long = || RegistryError::TooLong { host: host.to_owned(), what: what.to_owned(), limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_long().into());
    }
    let mut bytes = Vec::new();
    let mut speed = Speed::new();
    while let Some(chunk) = http::chunk(&mut response, host, what, patience, &mut speed).await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_long().into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Returns why the registry refused, from an answer whose status does not fit.
pub(super) async fn refusal(response: Response, host: &str, what: &str, patience: &Patience) -> Failure {
    let status = response.status().as_u16();
    let is_page = is_page(&response);
    let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    // A status that time may heal is known without the text, and the text may never come.
    let detail = if is_page { String::new() } else { explanation(response, host, what, patience).await };
    let (host, what) = (host.to_owned(), what.to_owned());
    let error = match status {
        404 if !is_page => RegistryError::NotFound { host, what },
        401 | 403 if !is_page => RegistryError::Denied { host, what, detail, login: None },
        429 => RegistryError::TooManyRequests { host, detail },
        200..=399 if is_page => RegistryError::NotARegistry { host, what },
        _ => RegistryError::Status { host, what, status, detail },
    };
    let passes = matches!(status, 429 | 500 | 502 | 503 | 504);
    Failure { error, again: if passes { Again::Later(asked.map(Duration::from_secs)) } else { Again::Never } }
}

/// Returns true if the answer is a page for people.
pub(super) fn is_page(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Returns what the registry says about its refusal, or nothing.
async fn explanation(mut response: Response, host: &str, what: &str, patience: &Patience) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Refusal {
        errors: Vec<Reason>,
        /// Token servers have their own form.
        details: Option<String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Reason {
        code: Option<String>,
        message: Option<String>,
    }
    let mut bytes = Vec::new();
    let mut speed = Speed::new();
    while bytes.len() < REFUSAL_BYTES {
        let Ok(Some(chunk)) = http::chunk(&mut response, host, what, patience, &mut speed).await else { break };
        bytes.extend_from_slice(&chunk[..chunk.len().min(REFUSAL_BYTES - bytes.len())]);
    }
    let Ok(refusal) = serde_json::from_slice::<Refusal>(&bytes) else { return printable(&bytes) };
    let reasons = refusal.errors.into_iter().map(|reason| match (reason.code, reason.message) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (code, message) => code.or(message).unwrap_or_default(),
    });
    let texts: Vec<String> = reasons.chain(refusal.details).filter(|text| !text.is_empty()).collect();
    printable(texts.join("; ").as_bytes())
}

/// Returns the beginning of a stranger's text so that a terminal shows it and does nothing else.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::new();
    for c in text.trim().chars().take(SHOWN_CHARACTERS) {
        match c {
            '\n' | '\r' | '\t' => shown.push(' '),
            // Among them those that reorder what stands around them.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    if text.trim().chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_cannot_drive_the_terminal() {
        assert_eq!(printable(b" a\x1b[31m\nb\xff "), "a\\u{1b}[31m b\u{fffd}");
        assert_eq!(printable("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        assert_eq!(printable(&[b'x'; 1000]).chars().count(), SHOWN_CHARACTERS + 1);
    }
}
