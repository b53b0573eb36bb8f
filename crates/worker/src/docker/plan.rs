//! What `docker` is told. Nothing here is done.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bstr::ByteSlice;
use kiln_api::DockerBuild;

use super::DockerError;
use crate::command::{Command, Environment};

/// The paths of one build.
pub(super) struct Paths<'a> {
    /// The recipe.
    pub(super) dockerfile: &'a Path,
    /// The sources.
    pub(super) context: &'a Path,
    /// Where the image's id is written.
    pub(super) image_id: &'a Path,
    /// The job's secrets: ids, which are names, and files.
    pub(super) secrets: &'a [(String, PathBuf)],
}

/// Returns the build of `job`.
///
/// # Errors
///
/// What the job asks for does not go together.
pub(super) fn build(job: &DockerBuild, paths: &Paths<'_>, environment: &Environment) -> Result<Command, DockerError> {
    if !job.buildkit && !paths.secrets.is_empty() {
        return Err(DockerError::SecretsWithoutBuildkit);
    }
    if job.buildkit && job.squash {
        return Err(DockerError::SquashWithBuildkit);
    }
    // Both are said, as the default depends on the version.
    let mut command = builder(job.buildkit, environment).env("BUILDKIT_PROGRESS", "plain");
    command = command.args(["--pull", "--iidfile"]).arg(paths.image_id);
    if job.squash {
        command = command.arg("--squash");
    }
    for argument in &job.build_args {
        // Without a value, Docker would take the worker's own variable of that name.
        if argument.contains(&b'=') {
            command = command.arg("--build-arg").arg(OsStr::from_bytes(argument));
        }
    }
    for (id, file) in paths.secrets {
        command = command.arg("--secret").arg(secret(id, file));
    }
    Ok(command.arg("--file").arg(paths.dockerfile).arg("--").arg(paths.context))
}

/// Fails where there is no BuildKit. The engine is not asked.
pub(super) fn has_buildkit(environment: &Environment) -> Command {
    // A client that needs a plugin looks for it before it does anything.
    builder(true, environment).arg("--help")
}

fn builder(buildkit: bool, environment: &Environment) -> Command {
    let command = Command::new("docker", environment).named("docker build");
    command.env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" }).arg("build")
}

/// Returns `id=ID,src=FILE`, which is one line of a table with commas: a field with quotes may have commas.
fn secret(id: &str, file: &Path) -> OsString {
    let mut text = format!("id={id},\"src=").into_bytes();
    for &byte in file.as_os_str().as_bytes() {
        text.extend(if byte == b'"' { &b"\"\""[..] } else { std::slice::from_ref(&byte) });
    }
    text.push(b'"');
    OsStr::from_bytes(&text).to_owned()
}

/// Where an image is pushed to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    /// The registry, if it is named, and the repository in it.
    pub(super) repository: String,
    tag: String,
}

impl Target {
    /// Reads `REPOSITORY[:TAG]`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, DockerError> {
        let refuse = || DockerError::Target { target: text.to_str_lossy().into_owned() };
        let text = std::str::from_utf8(text).map_err(|_| refuse())?;
        // A colon before a slash is that of a port.
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, "latest"),
        };
        let letters = |text: &str, others: &str| {
            text.starts_with(|first: char| first.is_ascii_alphanumeric() || others.contains('[') && first == '[')
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || others.contains(letter))
        };
        if !letters(repository, "._-/:[]")
            || !(letters(tag, "._-") || tag.starts_with('_') && letters(&tag[1..], "._-"))
        {
            return Err(refuse());
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }

    /// Returns `REPOSITORY:TAG`.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// Returns the registry to log in to; `None` for Docker's own.
    fn registry(&self) -> Option<&str> {
        let (first, _) = self.repository.split_once('/')?;
        (first.contains(['.', ':']) || first == "localhost").then_some(first).filter(|&first| first != "docker.io")
    }
}

/// Logs in at the target's registry, with a configuration of its own in `config`.
pub(super) fn login(
    target: &Target,
    user: &[u8],
    password: &[u8],
    config: &Path,
    environment: &Environment,
) -> Command {
    let command = docker(config, environment, "docker login").args(["login", "--password-stdin", "--username"]);
    // A user that begins with a dash is a user all the same, as it stands where a value must be.
    let command = command.arg(OsStr::from_bytes(user)).input(password);
    match target.registry() {
        Some(registry) => command.arg("--").arg(registry),
        None => command,
    }
}

/// Calls the image by the name that it is pushed to.
pub(super) fn tag(image: &str, target: &Target, environment: &Environment) -> Command {
    Command::new("docker", environment).named("docker tag").args(["tag", "--", image]).arg(target.name())
}

/// Pushes it.
pub(super) fn push(target: &Target, config: &Path, environment: &Environment) -> Command {
    docker(config, environment, "docker push").args(["push", "--"]).arg(target.name())
}

/// Asks for the digests that an image has in registries, a line for each.
pub(super) fn digests(image: &str, environment: &Environment) -> Command {
    let format = "{{range .RepoDigests}}{{println .}}{{end}}";
    Command::new("docker", environment)
        .named("docker image inspect")
        .args(["image", "inspect", "--format", format, "--", image])
}

/// Returns the digest that the image has in the repository, of what [`digests`] said.
pub(super) fn digest_in(repository: &str, said: &[u8]) -> Option<String> {
    // Other repositories may have the same image.
    let found = said
        .lines()
        .find(|line| line.strip_prefix(repository.as_bytes()).is_some_and(|rest| rest.starts_with(b"@sha256:")));
    found.and_then(|line| line.to_str().ok()).map(str::to_owned)
}

/// Asks one thing about the engine.
pub(super) fn info(what: &str, environment: &Environment) -> Command {
    Command::new("docker", environment).named("docker info").args(["info", "--format"]).arg(format!("{{{{.{what}}}}}"))
}

/// Removes what no container uses and is older than `hours`; with none, all of it.
pub(super) fn prune(hours: u64, environment: &Environment) -> Command {
    let command = Command::new("docker", environment).named("docker system prune");
    let command = command.args(["system", "prune", "--all", "--force"]);
    // Zero would leave what was made in this second.
    if hours == 0 { command } else { command.arg("--filter").arg(format!("until={hours}h")) }
}

fn docker(config: &Path, environment: &Environment, name: &str) -> Command {
    Command::new("docker", environment).named(name).arg("--config").arg(config)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use kiln_api::Dockerfile;

    use super::*;

    fn job() -> DockerBuild {
        DockerBuild {
            dockerfile: Dockerfile::Path("Dockerfile".into()),
            push_target: "".into(),
            push_user: "".into(),
            push_password: "".into(),
            build_args: Vec::new(),
            squash: false,
            buildkit: false,
            include_git: false,
        }
    }

    fn told(job: &DockerBuild, secrets: &[(String, PathBuf)]) -> Result<String, DockerError> {
        let paths =
            Paths { dockerfile: "/c/Dockerfile".as_ref(), context: "/c".as_ref(), image_id: "/t/id".as_ref(), secrets };
        build(job, &paths, &Vec::new()).map(|command| shown(&command))
    }

    fn shown(command: &Command) -> String {
        let mut text = String::new();
        for (name, value) in command.environment() {
            write!(text, "{}={} ", name.display(), value.display()).unwrap();
        }
        text.push_str("docker");
        for argument in command.arguments() {
            write!(text, " {:?}", argument.display().to_string()).unwrap();
        }
        text
    }

    #[test]
    fn builds() {
        let mut all = job();
        all.build_args = vec!["A=b c".into(), "HOME".into(), "--file=/etc/passwd".into()];
        all.squash = true;
        let mut kit = job();
        kit.buildkit = true;
        let secrets = [("key".to_owned(), "/t/s,\"x/key".into())];
        insta::assert_snapshot!(
            [told(&job(), &[]), told(&all, &[]), told(&kit, &secrets)].map(Result::unwrap).join("\n"),
            @r#"
        DOCKER_BUILDKIT=0 BUILDKIT_PROGRESS=plain docker "build" "--pull" "--iidfile" "/t/id" "--file" "/c/Dockerfile" "--" "/c"
        DOCKER_BUILDKIT=0 BUILDKIT_PROGRESS=plain docker "build" "--pull" "--iidfile" "/t/id" "--squash" "--build-arg" "A=b c" "--build-arg" "--file=/etc/passwd" "--file" "/c/Dockerfile" "--" "/c"
        DOCKER_BUILDKIT=1 BUILDKIT_PROGRESS=plain docker "build" "--pull" "--iidfile" "/t/id" "--secret" "id=key,\"src=/t/s,\"\"x/key\"" "--file" "/c/Dockerfile" "--" "/c"
        "#
        );
        assert!(matches!(told(&job(), &secrets), Err(DockerError::SecretsWithoutBuildkit)));
        kit.squash = true;
        assert!(matches!(told(&kit, &[]), Err(DockerError::SquashWithBuildkit)));
    }

    #[test]
    fn pushes_and_asks() {
        let target = |text: &str| Target::parse(text.as_bytes()).unwrap();
        let none = Environment::new();
        let config = Path::new("/t/config");
        let login = |text: &str| shown(&login(&target(text), b"me", b"secret", config, &none));
        insta::assert_snapshot!(
            [
                login("owner/name:tag"),
                login("docker.io/owner/name"),
                login("registry.example:5000/name"),
                login("localhost/name"),
                shown(&tag("sha256:1", &target("a/b:c"), &none)),
                shown(&push(&target("a/b"), config, &none)),
                shown(&digests("sha256:1", &none)),
                shown(&info("DockerRootDir", &none)),
                shown(&has_buildkit(&none)),
                shown(&prune(24, &none)),
            ]
            .join("\n"),
            @r#"
        docker "--config" "/t/config" "login" "--password-stdin" "--username" "me"
        docker "--config" "/t/config" "login" "--password-stdin" "--username" "me"
        docker "--config" "/t/config" "login" "--password-stdin" "--username" "me" "--" "registry.example:5000"
        docker "--config" "/t/config" "login" "--password-stdin" "--username" "me" "--" "localhost"
        docker "tag" "--" "sha256:1" "a/b:c"
        docker "--config" "/t/config" "push" "--" "a/b:latest"
        docker "image" "inspect" "--format" "{{range .RepoDigests}}{{println .}}{{end}}" "--" "sha256:1"
        docker "info" "--format" "{{.DockerRootDir}}"
        DOCKER_BUILDKIT=1 docker "build" "--help"
        docker "system" "prune" "--all" "--force" "--filter" "until=24h"
        "#
        );
    }

    #[test]
    fn a_target_is_a_repository_and_a_tag() {
        let parse = |text: &str| Target::parse(text.as_bytes()).map(|target| (target.repository.clone(), target.tag));
        assert_eq!(parse("a/b:c").unwrap(), ("a/b".to_owned(), "c".to_owned()));
        assert_eq!(parse("host:5000/b").unwrap(), ("host:5000/b".to_owned(), "latest".to_owned()));
        assert_eq!(parse("host:5000/b:1.0-rc").unwrap(), ("host:5000/b".to_owned(), "1.0-rc".to_owned()));
        for bad in ["", ":", "a:", "-x", "--config=x", "a b", "a@sha256:00", "a:b c", "a;b", "a\nb"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_digest_is_that_of_the_repository() {
        let said = b"other/name@sha256:1\nowner/name-more@sha256:2\nowner/name@sha256:3\n";
        assert_eq!(digest_in("owner/name", said).unwrap(), "owner/name@sha256:3");
        assert_eq!(digest_in("owner", said), None);
    }
}
