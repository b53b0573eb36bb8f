//! From a spec to stages of steps. Pure: no file is read.

use bstr::{BString, ByteSlice};
use kiln_spec::{Op, Source, Spec, User};
use thiserror::Error;

/// What the spec or the caller got wrong. Found before anything runs.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A secret has no value.
    #[error("the spec needs the secret `{0}`; give it with --secret {0}:FILE")]
    MissingSecret(String),
    /// A network that this version does not have.
    #[error("unknown network `{0}`: only `host` is supported, and none for no network")]
    UnknownNetwork(String),
    /// There is no stage of this name.
    #[error("there is no stage `{name}`{}", if known.is_empty() { String::new() } else { format!("; there are: {}", known.join(", ")) })]
    UnknownStage {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The system has no place for a NUL byte in what a step uses.
    #[error("`{0}` cannot run: a NUL byte is in its words, variables or paths")]
    Nul(String),
    /// The system cannot set such a variable.
    #[error("`{0}` cannot be the name of a variable: it is empty or contains `=`")]
    BadVariable(String),
    /// The states that the operations see are too large together.
    #[error("the spec is too large: its variables and directories, counted for every operation, exceed {} MiB", MAX_STATE_BYTES >> 20)]
    TooLarge,
    /// A copy names a build that is not in scope. The parser refuses this too.
    #[error("a copy is from the build `{0}`, which is not defined before it")]
    UnknownBuild(String),
}

/// What the states of all operations may take together. Each operation sees all variables set before it, so a spec of a few
/// megabytes could otherwise ask for any amount of memory.
const MAX_STATE_BYTES: usize = 64 << 20;

/// The stages of a build.
#[derive(Debug)]
pub(crate) struct Plan {
    /// A stage comes after those that it copies from; the wanted one is the last.
    pub(crate) stages: Vec<Stage>,
}

/// One `(from …)` and its operations.
#[derive(Debug)]
pub(crate) struct Stage {
    /// None for the outermost.
    pub(crate) name: Option<BString>,
    pub(crate) from: BString,
    pub(crate) items: Vec<Item>,
    /// The state after the last operation.
    pub(crate) end: Context,
    /// The stages defined inside: they are built even if nothing is copied from them.
    inner: Vec<usize>,
}

/// An operation, and the state that it runs in.
#[derive(Debug)]
pub(crate) struct Item {
    /// `WORKDIR: (op …)`.
    pub(crate) text: String,
    pub(crate) action: Action,
}

/// What an operation does.
#[derive(Debug)]
pub(crate) enum Action {
    /// Nothing by itself.
    Note,
    Run {
        run: kiln_spec::Run,
        context: Context,
    },
    Copy {
        copy: kiln_spec::Copy,
        from_stage: Option<usize>,
        context: Context,
    },
}

/// The state that flows from operation to operation, besides the filesystem.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// Set by the spec; the base image's own is below these.
    pub(crate) env: Vec<(BString, BString)>,
    pub(crate) user: User,
    /// Absolute.
    pub(crate) workdir: BString,
    pub(crate) shell: Vec<BString>,
    /// Which of these the spec says; the others are defaults.
    pub(crate) said: Said,
}

/// What the spec says of the state that commands run in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said {
    pub(crate) user: bool,
    pub(crate) workdir: bool,
    pub(crate) shell: bool,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            env: Vec::new(),
            user: User::Unix { uid: 0, gid: 0 },
            workdir: "/".into(),
            shell: ["/usr/bin/env", "bash", "-c"].map(BString::from).to_vec(),
            said: Said::default(),
        }
    }
}

impl Plan {
    /// Flattens `spec`. With `target`, keeps the last stage of that name and what it needs.
    pub(crate) fn new(spec: &Spec, target: Option<&BString>) -> Result<Self, PlanError> {
        let mut flat = Flat::default();
        let mut wanted = flat.add(spec, None)?;
        let stages = flat.stages;
        if let Some(target) = target {
            let found = stages.iter().rposition(|stage| stage.name.as_ref() == Some(target));
            wanted = found.ok_or_else(|| PlanError::UnknownStage {
                name: target.to_string(),
                known: stages.iter().filter_map(|stage| stage.name.as_ref()).map(BString::to_string).collect(),
            })?;
        }
        Ok(Self { stages: keep(stages, wanted) })
    }

    /// Returns how many steps there are, imports of bases included.
    pub(crate) fn steps(&self) -> usize {
        let steps = |stage: &Stage| stage.items.iter().filter(|item| !matches!(item.action, Action::Note)).count();
        self.stages.iter().map(|stage| 1 + steps(stage)).sum()
    }

    /// Checks what can be known before anything runs.
    pub(crate) fn check(&self, has_secret: impl Fn(&BString) -> bool) -> Result<(), PlanError> {
        for item in self.stages.iter().flat_map(|stage| &stage.items) {
            let has_nul = match &item.action {
                Action::Note => false,
                Action::Copy { copy, context, .. } => {
                    copy.src.iter().chain([&copy.dst, &context.workdir]).any(|text| text.contains(&0))
                }
                Action::Run { run, context } => {
                    if let Some(network) = run.networks.iter().find(|network| *network != "host") {
                        return Err(PlanError::UnknownNetwork(network.to_string()));
                    }
                    if let Some(secret) = run.secrets.iter().find(|secret| !has_secret(&secret.name)) {
                        return Err(PlanError::MissingSecret(secret.name.to_string()));
                    }
                    if let Some((name, _)) =
                        context.env.iter().find(|(name, _)| name.is_empty() || name.contains(&b'='))
                    {
                        return Err(PlanError::BadVariable(name.to_string()));
                    }
                    let env = context.env.iter().flat_map(|(name, value)| [name, value]);
                    let targets = run.caches.iter().map(|cache| &cache.target);
                    let targets = targets.chain(run.secrets.iter().map(|secret| &secret.target));
                    let words = context.shell.iter().chain([&run.command, &context.workdir]);
                    words.chain(env).chain(targets).any(|text| text.contains(&0))
                }
            };
            if has_nul {
                return Err(PlanError::Nul(item.text.clone()));
            }
        }
        Ok(())
    }
}

/// Stages found so far, while a spec is walked.
#[derive(Default)]
struct Flat {
    stages: Vec<Stage>,
    /// The builds in sight; of two with one name, the later wins.
    scope: Vec<(BString, usize)>,
    /// What the states of all operations take together.
    state_bytes: usize,
}

impl Flat {
    /// Appends the stages of `spec`, itself last, and returns its place. (The parser bounds the depth of nesting.)
    fn add(&mut self, spec: &Spec, name: Option<&BString>) -> Result<usize, PlanError> {
        let outside = self.scope.len();
        let mut inner = Vec::new();
        for build in &spec.builds {
            let place = self.add(&build.spec, Some(&build.name))?;
            inner.push(place);
            self.scope.push((build.name.clone(), place));
        }
        let mut context = Context::default();
        let mut items = Vec::new();
        for op in &spec.ops {
            self.state_bytes += context.size_bytes();
            if self.state_bytes > MAX_STATE_BYTES {
                return Err(PlanError::TooLarge);
            }
            let text = format!("{}: {op}", context.workdir);
            let action = match op {
                Op::Comment(_) => Action::Note,
                Op::Workdir(dir) => {
                    let joined = join(&context.workdir, dir);
                    context.workdir = joined.strip_suffix(b"/").filter(|dir| !dir.is_empty()).unwrap_or(&joined).into();
                    context.said.workdir = true;
                    Action::Note
                }
                Op::Shell(words) => {
                    context.shell.clone_from(words);
                    context.said.shell = true;
                    Action::Note
                }
                Op::Env { name, value } => {
                    set(&mut context.env, name.clone(), value.clone());
                    Action::Note
                }
                Op::User(user) => {
                    context.user = user.clone();
                    context.said.user = true;
                    Action::Note
                }
                Op::Run(run) => Action::Run { run: run.clone(), context: context.clone() },
                Op::Copy(copy) => {
                    let from_stage = match &copy.source {
                        Source::Context => None,
                        Source::Build(name) => {
                            let found = self.scope.iter().rfind(|(known, _)| known == name);
                            Some(found.ok_or_else(|| PlanError::UnknownBuild(name.to_string()))?.1)
                        }
                    };
                    Action::Copy { copy: copy.clone(), from_stage, context: context.clone() }
                }
            };
            items.push(Item { text, action });
        }
        self.scope.truncate(outside);
        self.stages.push(Stage { name: name.cloned(), from: spec.from.clone(), items, end: context, inner });
        Ok(self.stages.len() - 1)
    }
}

impl Context {
    /// About what a copy of this takes.
    fn size_bytes(&self) -> usize {
        let text = |text: &BString| text.len() + size_of::<BString>();
        let env = self.env.iter().map(|(name, value)| text(name) + text(value));
        env.sum::<usize>() + self.shell.iter().map(text).sum::<usize>() + self.workdir.len()
    }
}

/// Keeps the stage `wanted` and what it needs, in order; places are renumbered.
fn keep(stages: Vec<Stage>, wanted: usize) -> Vec<Stage> {
    let mut kept = vec![false; stages.len()];
    let mut pending = vec![wanted];
    while let Some(place) = pending.pop() {
        if !std::mem::replace(&mut kept[place], true) {
            pending.extend(stages[place].needs());
        }
    }
    let mut moved = vec![0; stages.len()];
    let mut result = Vec::new();
    for (place, mut stage) in stages.into_iter().enumerate() {
        if kept[place] {
            stage.renumber(&moved);
            moved[place] = result.len();
            result.push(stage);
        }
    }
    result
}

impl Stage {
    /// Returns the places of the stages that must succeed for this one.
    pub(crate) fn needs(&self) -> impl Iterator<Item = usize> {
        let copied = self.items.iter().filter_map(|item| match &item.action {
            Action::Copy { from_stage, .. } => *from_stage,
            _ => None,
        });
        self.inner.iter().copied().chain(copied)
    }

    fn renumber(&mut self, moved: &[usize]) {
        for place in &mut self.inner {
            *place = moved[*place];
        }
        for item in &mut self.items {
            if let Action::Copy { from_stage: Some(place), .. } = &mut item.action {
                *place = moved[*place];
            }
        }
    }
}

/// Sets a variable; an earlier value of the name is replaced where it stands.
pub(crate) fn set(env: &mut Vec<(BString, BString)>, name: BString, value: BString) {
    match env.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => env.push((name, value)),
    }
}

/// Joins a path to an absolute one: an absolute `path` replaces. `.` and doubled slashes are dropped, `..` goes up
/// (never above `/`), and a slash at the end stays.
pub(crate) fn join(base: &BString, path: &BString) -> BString {
    let mut whole = if path.starts_with(b"/") { Vec::new() } else { base.to_vec() };
    whole.push(b'/');
    whole.extend_from_slice(path);
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in whole.split_str("/") {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let mut joined = Vec::from("/");
    joined.extend_from_slice(&parts.join(&b'/'));
    if path.ends_with(b"/") || matches!(path.rsplit_str("/").next(), Some(b"." | b"..")) {
        joined.push(b'/');
    }
    // A directory needs its slash only where it tells something: `/` has one already.
    if joined == b"//" { "/".into() } else { joined.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str, target: Option<&str>) -> Result<Plan, PlanError> {
        Plan::new(&kiln_spec::parse(text.as_bytes()).unwrap(), target.map(BString::from).as_ref())
    }

    #[test]
    fn paths_join_as_a_shell_would() {
        for (base, path, joined) in [
            ("/", "src", "/src"),
            ("/a/b", "../c", "/a/c"),
            ("/a", "/b//c/./d", "/b/c/d"),
            ("/", "../../x", "/x"),
            ("/a", "./", "/a/"),
            ("/a", ".", "/a/"),
            ("/a", "b/", "/a/b/"),
            ("/", ".", "/"),
        ] {
            assert_eq!(join(&base.into(), &path.into()), joined, "{base} + {path}");
        }
    }

    #[test]
    fn state_flows_from_operation_to_operation() {
        let plan = plan(
            "((from b) (workdir /a) (env X 1) (env Y 2) (env X 3) (workdir b) (user (uid 5) (gid 6)) (run (shell c)))",
            None,
        )
        .unwrap();
        let item = plan.stages[0].items.last().unwrap();
        let Action::Run { context, .. } = &item.action else { panic!("{item:?}") };
        assert_eq!(context.workdir, "/a/b");
        assert_eq!(context.env, [("X".into(), "3".into()), ("Y".into(), "2".into())]);
        assert_eq!(context.user, User::Unix { uid: 5, gid: 6 });
        assert_eq!(item.text, "/a/b: (run (shell c))");
    }

    #[test]
    fn a_copy_is_from_the_nearest_build_of_its_name() {
        let plan = plan(
            "((build x ((from first)))
              (build outer ((build x ((from inner))) (from o) (copy (from (build x)) (src a) (dst b))))
              (build x ((from last)))
              (from end) (copy (from (build x)) (src a) (dst b)))",
            None,
        )
        .unwrap();
        let source_of = |stage: &Stage| match &stage.items[0].action {
            Action::Copy { from_stage: Some(place), .. } => plan.stages[*place].from.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(source_of(plan.stages.last().unwrap()), "last");
        let outer = plan.stages.iter().find(|stage| stage.from == "o").unwrap();
        assert_eq!(source_of(outer), "inner");
        assert_eq!(plan.steps(), 7);
    }

    #[test]
    fn a_target_leaves_out_what_it_does_not_need() {
        let text = "((build a ((from a))) (build b ((from b) (copy (from (build a)) (src x) (dst y)))) (build c ((from c))) (from d))";
        let froms = |target| -> Vec<String> {
            plan(text, target).unwrap().stages.iter().map(|stage| stage.from.to_string()).collect()
        };
        assert_eq!(froms(Some("b")), ["a", "b"]);
        assert_eq!(froms(None), ["a", "b", "c", "d"], "a build is built even if nothing is copied from it");
        let error = plan(text, Some("e")).unwrap_err().to_string();
        assert_eq!(error, "there is no stage `e`; there are: a, b, c");
    }

    #[test]
    fn a_spec_cannot_ask_for_any_amount_of_memory() {
        let growing = |op: fn(usize) -> String| format!("((from b) {})", (0..20_000).map(op).collect::<String>());
        for text in [growing(|at| format!("(env V{at} x)")), growing(|_| "(workdir abcdefgh)".to_owned())] {
            assert_eq!(plan(&text, None).unwrap_err(), PlanError::TooLarge);
        }
        let usual = format!("((from b) {})", "(env PATH /usr/bin:/bin) (run (shell x))".repeat(5_000));
        assert_eq!(plan(&usual, None).unwrap().steps(), 5_001);
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_runs() {
        let check = |text: &str| plan(text, None).unwrap().check(|name| name == "known").unwrap_err().to_string();
        assert_eq!(
            check("((from a) (run (secrets (known (target /k)) (token (target /t))) (shell x)))"),
            "the spec needs the secret `token`; give it with --secret token:FILE"
        );
        assert_eq!(
            check("((from a) (run (network host nat) (shell x)))"),
            "unknown network `nat`: only `host` is supported, and none for no network"
        );
        for op in [
            r#"(run (shell "a\000b"))"#,
            r#"(shell "\000") (run (shell b))"#,
            r#"(env A "b\000c") (run (shell true))"#,
            r#"(workdir "/a\000b") (run (shell true))"#,
            r#"(run (cache (c (target "/a\000b"))) (shell true))"#,
            r#"(copy (src "a\000b") (dst /x))"#,
            r#"(copy (src .) (dst "/a\000b"))"#,
        ] {
            let error = check(&format!("((from b) {op})"));
            assert!(error.ends_with("cannot run: a NUL byte is in its words, variables or paths"), "{op}: {error}");
        }
        for name in ["A=B", "\"\""] {
            let error = check(&format!("((from b) (env {name} c) (run (shell true)))"));
            assert!(error.contains("cannot be the name of a variable"), "{error}");
        }
    }
}
