//! Which URLs sources come from, and the ids of commits.

use std::fmt;

use super::ContextError;

/// A URL that git may fetch from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Repository {
    /// Without user and password: nothing that is shown, and no command line, has those.
    url: String,
    login: Option<Login>,
    /// Whether local paths are let in, too.
    files: bool,
}

/// The user and password of a URL.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
    /// Scheme and host that they are for.
    pub(super) site: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("site", &self.site).finish_non_exhaustive()
    }
}

impl Repository {
    /// Reads a URL. `files` lets `file://` in.
    ///
    /// What is no URL of these kinds never reaches git, which would run a program for `ext::sh -c …`, take `-u./payload` for an option
    /// (CVE-2017-1000117), and read any directory.
    pub(super) fn parse(text: &[u8], files: bool) -> Result<Self, ContextError> {
        let shown = || masked(&String::from_utf8_lossy(text));
        let refuse = |reason| Err(ContextError::Url { url: shown(), reason });
        let Ok(text) = std::str::from_utf8(text) else { return refuse("it is not UTF-8") };
        if text.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
            return refuse("it has a blank or a control character");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse("write it as `https://…`, `http://…` or `git://…`");
        };
        match scheme {
            "https" | "http" | "git" => {}
            "file" if files => return Ok(Self { url: text.to_owned(), login: None, files }),
            _ => return refuse("only `https://…`, `http://…` and `git://…` are fetched from"),
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if host.is_empty() || host.starts_with(['-', ':']) || host.contains(['%', '\\', '?', '#']) {
            return refuse("it names no host");
        }
        let site = format!("{scheme}://{host}");
        let login = match user.filter(|user| !user.is_empty()) {
            Some(_) if scheme == "git" => return refuse("`git://` has no users"),
            Some(user) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                let (Some(user), Some(password)) = (decoded(user), decoded(password)) else {
                    return refuse("its user or password is not well encoded");
                };
                Some(Login { user, password, site: site.clone() })
            }
            None => None,
        };
        Ok(Self { url: format!("{site}/{path}"), login, files })
    }

    /// Returns the URL without user and password.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Reads the URL of a submodule, which may be relative to this one's.
    pub(super) fn submodule(&self, text: &[u8]) -> Result<Self, ContextError> {
        if !text.starts_with(b"./") && !text.starts_with(b"../") {
            return Self::parse(text, self.files);
        }
        let refuse = || ContextError::Url {
            url: String::from_utf8_lossy(text).into_owned(),
            reason: "it leads out of the repository's host",
        };
        let mut rest = std::str::from_utf8(text).map_err(|_| refuse())?;
        let mut base = self.url.trim_end_matches('/');
        loop {
            if let Some(same) = rest.strip_prefix("./") {
                rest = same;
            } else if let Some(up) = rest.strip_prefix("../") {
                let (parent, _) = base.rsplit_once('/').ok_or_else(refuse)?;
                // `https:/`: that was the host.
                if parent.ends_with('/') {
                    return Err(refuse());
                }
                (base, rest) = (parent, up);
            } else {
                break;
            }
        }
        let mut found = Self::parse(format!("{base}/{rest}").as_bytes(), self.files)?;
        // On the same host by construction.
        found.login.clone_from(&self.login);
        Ok(found)
    }

    /// Returns the name of the clone's directory: for people its end, for us a digest of all, user and password included. So a
    /// job without those does not get at what another had fetched.
    pub(super) fn directory_name(&self, ids: Ids) -> String {
        let end = self.url.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let end = end.strip_suffix(".git").unwrap_or(end);
        let readable: String =
            end.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '_').take(40).collect();
        let mut hasher = blake3::Hasher::new();
        let (user, password) = self.login.as_ref().map_or(("", ""), |login| (&*login.user, &*login.password));
        for part in [ids.name(), &self.url, user, password] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        format!("{readable}-{}.git", &hasher.finalize().to_hex()[..32])
    }
}

/// Returns `url` without what may be a password.
fn masked(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            match rest[..end].rfind('@') {
                Some(at) => format!("{scheme}://***{}", &rest[at..]),
                None => url.to_owned(),
            }
        }
        None => url.to_owned(),
    }
}

/// Decodes `%41`. `None` for what is not well encoded or has control characters, by which git's credentials are forged (CVE-2020-5260).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

/// The kinds of object ids.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ids {
    Sha1,
    Sha256,
}

impl Ids {
    /// Returns what git calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }
}

/// The id of a commit: 40 or 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Commit(String);

impl Commit {
    pub(super) fn parse(text: &[u8]) -> Result<Self, ContextError> {
        let well = matches!(text.len(), 40 | 64) && text.iter().all(u8::is_ascii_hexdigit);
        let text = String::from_utf8_lossy(text);
        if well { Ok(Self(text.to_ascii_lowercase())) } else { Err(ContextError::NoId { text: text.into_owned() }) }
    }

    /// Reads those of a job, which are of one kind.
    pub(super) fn parse_all(texts: &[bstr::BString]) -> Result<Vec<Self>, ContextError> {
        let commits = texts.iter().map(|text| Self::parse(text)).collect::<Result<Vec<_>, _>>()?;
        match commits.iter().find(|commit| commit.ids() != commits[0].ids()) {
            Some(other) => Err(ContextError::NoId { text: other.0.clone() }),
            None => Ok(commits),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn ids(&self) -> Ids {
        if self.0.len() == 40 { Ids::Sha1 } else { Ids::Sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Repository::parse(text.as_bytes(), false).unwrap_err().to_string()
    }

    #[test]
    fn only_urls_of_three_kinds_are_fetched_from() {
        for good in
            ["https://example.org/a.git", "http://example.org:8080/a", "git://example.org/a/b", "https://[::1]:1/x"]
        {
            assert_eq!(Repository::parse(good.as_bytes(), false).unwrap().url(), good);
        }
        for bad in [
            "-u./payload",
            "--upload-pack=touch /tmp/x",
            "ext::sh -c touch% /tmp/x",
            "fd::17",
            "/srv/git/a",
            "./a",
            "file:///srv/git/a",
            "ssh://-oProxyCommand=touch/x",
            "git@example.org:a/b",
            "ssh://git@example.org/a",
            "https:///etc/passwd",
            "https://-oX/a",
            "https://user:pw@/a",
            "https://example.org%0ahost=evil/a",
            "https://example.org/a b",
            "https://example.org/a\nb",
            "HTTPS://example.org/a",
            "ftp://example.org/a",
            "https://a%0a:b@example.org/",
            "https://a%zz:b@example.org/",
            "git://user:pw@example.org/a",
            "",
        ] {
            assert!(refused(bad).starts_with("cannot fetch from `"), "{bad}");
        }
        assert!(Repository::parse(b"file:///srv/a", true).is_ok());
    }

    #[test]
    fn a_password_is_in_nothing_that_is_shown() {
        let repository = Repository::parse(b"https://me%40x:pass%3Aword@example.org/a.git", false).unwrap();
        assert_eq!(repository.url(), "https://example.org/a.git");
        let login = repository.login().unwrap();
        assert_eq!((&*login.user, &*login.password, &*login.site), ("me@x", "pass:word", "https://example.org"));
        assert!(!format!("{repository:?}").contains("word"));
        assert!(!repository.directory_name(Ids::Sha1).contains("word"));
        assert_eq!(
            refused("ftp://me:secret@example.org/a"),
            "cannot fetch from `ftp://***@example.org/a`: only `https://…`, `http://…` and `git://…` are fetched from"
        );
        assert!(!refused("https://me:secret@example.org/a b").contains("secret"));
    }

    #[test]
    fn a_clone_has_a_name_of_its_own() {
        let name = |url: &str, ids| Repository::parse(url.as_bytes(), false).unwrap().directory_name(ids);
        let one = name("https://example.org/a/kiln.git", Ids::Sha1);
        assert!(one.starts_with("kiln-") && one.len() == "kiln-.git".len() + 32, "{one}");
        assert_ne!(one, name("https://example.org/a/kiln.git", Ids::Sha256));
        assert_ne!(one, name("https://example.com/a/kiln.git", Ids::Sha1));
        assert_ne!(one, name("https://me@example.org/a/kiln.git", Ids::Sha1));
        assert!(name("https://example.org/a/..", Ids::Sha1).starts_with('-'));
    }

    #[test]
    fn a_submodule_may_be_named_from_where_its_parent_is() {
        let parent = Repository::parse(b"https://me:pw@example.org/group/project.git/", false).unwrap();
        let url = |text: &str| parent.submodule(text.as_bytes()).map(|found| found.url().to_owned());
        assert_eq!(url("../other.git").unwrap(), "https://example.org/group/other.git");
        assert_eq!(url("../../up/./x").unwrap(), "https://example.org/up/./x");
        assert_eq!(url("./below").unwrap(), "https://example.org/group/project.git/below");
        assert_eq!(url("git://else.where/x").unwrap(), "git://else.where/x");
        assert_eq!(parent.submodule(b"../other").unwrap().login().unwrap().user, "me");
        assert_eq!(parent.submodule(b"https://else.where/x").unwrap().login(), None);
        for bad in
            ["../../../../x", "../../../x", "-u./payload", "ext::sh -c x", "git@example.org:x", "/srv/x", "file:///x"]
        {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_commit_is_all_digits_of_its_id() {
        let one = "0123456789abcdefABCDEF0123456789abcdef01";
        assert_eq!(Commit::parse(one.as_bytes()).unwrap().as_str(), one.to_lowercase());
        assert_eq!(Commit::parse("f".repeat(64).as_bytes()).unwrap().ids(), Ids::Sha256);
        for bad in ["", "main", "0123456", "--exec=x", "^0123456789abcdefabcdef0123456789abcdef0"] {
            assert!(Commit::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Commit::parse_all(&["1".repeat(40).into(), "1".repeat(64).into()]).is_err());
    }
}
