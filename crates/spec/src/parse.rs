//! S-expressions to a [`Spec`]: the grammar, and which builds are in scope where.

use std::borrow::Cow;
use std::collections::HashMap;

use bstr::{BStr, BString};

use crate::ast::{Build, Cache, Copy, Op, Run, Secret, Source, Spec, User};
use crate::error::{ParseError, ParseErrorKind as Kind, nearest};
use crate::sexp::{self, Items, Sexp};

/// All that can stand in a stage, for messages.
pub(crate) const OPS: [&str; 9] = ["build", "from", "comment", "workdir", "shell", "env", "user", "run", "copy"];

const RUN: &str = "(run [(cache …)] [(network …)] [(secrets …)] (shell COMMAND))";
const COPY: &str = "(copy [(from …)] (src PATH…) (dst PATH) [(exclude NAME…)])";
const USER: &str = "(user (uid N) (gid N))";
const SOURCE: &str = "(from SOURCE)";
const OPTIONS: &str = "(buildkit_options ((NAME VALUE)…))";

type Result<T, E = ParseError> = std::result::Result<T, E>;

/// Reads and checks a spec.
///
/// # Errors
///
/// The first mistake in the text, or [`Kind::TooLarge`] for one longer than [`MAX_SPEC_BYTES`](crate::MAX_SPEC_BYTES).
pub fn parse(text: &[u8]) -> Result<Spec, ParseError> {
    let tree = sexp::read(text)?;
    let mut parser = Parser { text, scope: Scope::default() };
    let mut roots = tree.roots();
    let Some(root) = roots.next() else {
        return Err(ParseError::new(text, 0..0, Kind::NoSpec));
    };
    if let Some(second) = roots.next() {
        return Err(parser.error(second, Kind::SecondSpec));
    }
    parser.spec(root)
}

struct Parser<'t> {
    text: &'t [u8],
    scope: Scope,
}

/// The names of the builds that may be copied from, outermost stage first.
///
/// The counts make a look-up cheap: a text may hold a great many builds, and as many copies.
#[derive(Default)]
struct Scope {
    names: Vec<BString>,
    /// A count of zero is that of a name that was in scope.
    counts: HashMap<BString, usize>,
}

impl Scope {
    fn add(&mut self, name: BString) {
        *self.counts.entry(name.clone()).or_default() += 1;
        self.names.push(name);
    }

    fn leave(&mut self, len_before: usize) {
        for name in self.names.drain(len_before..) {
            if let Some(count) = self.counts.get_mut(&name) {
                *count -= 1;
            }
        }
    }

    fn has(&self, name: &BString) -> bool {
        self.counts.get(name).is_some_and(|count| *count > 0)
    }
}

/// A list that starts with an atom: its name, and what follows.
struct Form<'t> {
    whole: Sexp<'t>,
    head: Sexp<'t>,
    name: Cow<'t, BStr>,
    args: Items<'t>,
}

impl Parser<'_> {
    fn error(&self, at: Sexp<'_>, kind: Kind) -> ParseError {
        ParseError::new(self.text, at.span(), kind)
    }

    /// Recursion is as deep as builds are nested, which the reader bounds.
    fn spec(&mut self, sexp: Sexp<'_>) -> Result<Spec> {
        let items = self.items(sexp, "((from BASE) …)")?;
        let outer_scope = self.scope.names.len();
        let mut builds = Vec::new();
        let mut from = None;
        let mut ops = Vec::new();
        for item in items {
            let form = self.form(item, "(OPERATION …)")?;
            match &**form.name {
                b"build" if from.is_some() => return Err(self.error(form.head, Kind::BuildAfterFrom)),
                b"build" => {
                    let form_text = "(build NAME SPEC)";
                    let [name, spec] = self.exactly("build", form_text, &form)?;
                    let name = self.atom("build", form_text, name)?;
                    let spec = self.spec(spec)?;
                    self.scope.add(name.clone());
                    builds.push(Build { name, spec });
                }
                b"from" if from.is_some() => return Err(self.error(form.head, Kind::SecondFrom)),
                b"from" => from = Some(self.one("from", "(from BASE)", &form)?),
                _ => {
                    let op = self.op(&form)?;
                    if from.is_none() {
                        return Err(self.error(form.head, Kind::OpBeforeFrom));
                    }
                    ops.push(op);
                }
            }
        }
        self.scope.leave(outer_scope);
        let from = from.ok_or_else(|| self.error(sexp, Kind::NoFrom))?;
        Ok(Spec { builds, from, ops })
    }

    fn op(&self, form: &Form<'_>) -> Result<Op> {
        Ok(match &**form.name {
            b"comment" => Op::Comment(self.one("comment", "(comment TEXT)", form)?),
            b"workdir" => Op::Workdir(self.one("workdir", "(workdir DIR)", form)?),
            b"shell" => Op::Shell(self.atoms("shell", "(shell ARGUMENT…)", form)?),
            b"env" => {
                let form_text = "(env NAME VALUE)";
                let [name, value] = self.exactly("env", form_text, form)?;
                Op::Env { name: self.atom("env", form_text, name)?, value: self.atom("env", form_text, value)? }
            }
            b"user" => Op::User(self.user(form)?),
            b"run" => Op::Run(self.run(form)?),
            b"copy" => Op::Copy(self.copy(form)?),
            _ => {
                let nearest = nearest(&form.name, OPS);
                return Err(self.error(form.head, Kind::UnknownOp { name: form.name.clone().into_owned(), nearest }));
            }
        })
    }

    fn user(&self, form: &Form<'_>) -> Result<User> {
        let [uid, gid, name] = self.fields("user", &["uid", "gid", "name"], form.args.clone())?;
        match (uid, gid, name) {
            (None, None, Some(name)) => Ok(User::Named(self.one("name", "(name NAME)", &name)?)),
            (_, _, Some(_)) => Err(self.error(form.whole, Kind::MixedUser)),
            (uid, gid, None) => {
                let uid = self.required("user", "uid", USER, form, uid)?;
                let gid = self.required("user", "gid", USER, form, gid)?;
                Ok(User::Unix { uid: self.id("uid", "(uid N)", &uid)?, gid: self.id("gid", "(gid N)", &gid)? })
            }
        }
    }

    fn id(&self, name: &'static str, form_text: &'static str, form: &Form<'_>) -> Result<u32> {
        let [sexp] = self.exactly(name, form_text, form)?;
        let text = self.atom(name, form_text, sexp)?;
        // The highest is -1 to the kernel: "leave it as it is".
        let id = std::str::from_utf8(&text).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match id.and_then(|digits| digits.parse().ok()) {
            Some(id) if id != u32::MAX => Ok(id),
            _ => Err(self.error(sexp, Kind::BadId { text })),
        }
    }

    fn run(&self, form: &Form<'_>) -> Result<Run> {
        let [cache, network, secrets, shell] =
            self.fields("run", &["cache", "network", "secrets", "shell"], form.args.clone())?;
        let shell = self.required("run", "shell", RUN, form, shell)?;
        let mut run = Run {
            caches: Vec::new(),
            networks: Vec::new(),
            secrets: Vec::new(),
            command: self.one("shell", "(shell COMMAND)", &shell)?,
        };
        if let Some(network) = network {
            run.networks = self.atoms("network", "(network NAME…)", &network)?;
        }
        for sexp in cache.into_iter().flat_map(|cache| cache.args) {
            const CACHE: &str = "(NAME (target PATH))";
            let (name, target, buildkit_options) = self.mount("cache", CACHE, sexp)?;
            let target = target
                .ok_or_else(|| self.error(sexp, Kind::MissingField { op: "cache", field: "target", form: CACHE }))?;
            run.caches.push(Cache { name, target, buildkit_options });
        }
        for sexp in secrets.into_iter().flat_map(|secrets| secrets.args) {
            let (name, target, buildkit_options) = self.mount("secrets", "(NAME [(target PATH)])", sexp)?;
            let target = target.unwrap_or_else(|| [b"/run/secrets/", name.as_slice()].concat().into());
            run.secrets.push(Secret { name, target, buildkit_options });
        }
        Ok(run)
    }

    /// Parses a cache or a secret: they look alike.
    #[expect(clippy::type_complexity, reason = "split up at once, and only here")]
    fn mount(
        &self,
        field: &'static str,
        form_text: &'static str,
        sexp: Sexp<'_>,
    ) -> Result<(BString, Option<BString>, Vec<(BString, BString)>)> {
        let form = self.form(sexp, form_text)?;
        let [target, options] = self.fields(field, &["target", "buildkit_options"], form.args)?;
        let target = target.map(|target| self.one("target", "(target PATH)", &target)).transpose()?;
        let mut buildkit_options = Vec::new();
        if let Some(options) = options {
            let [pairs] = self.exactly("buildkit_options", OPTIONS, &options)?;
            for pair in self.items(pairs, OPTIONS)? {
                let key = self.form(pair, "(NAME VALUE)")?;
                let value = self.one("buildkit_options", OPTIONS, &key)?;
                buildkit_options.push((key.name.into_owned(), value));
            }
        }
        Ok((form.name.into_owned(), target, buildkit_options))
    }

    fn copy(&self, form: &Form<'_>) -> Result<Copy> {
        let [from, src, dst, exclude] = self.fields("copy", &["from", "src", "dst", "exclude"], form.args.clone())?;
        let src = self.required("copy", "src", COPY, form, src)?;
        let dst = self.required("copy", "dst", COPY, form, dst)?;
        Ok(Copy {
            source: from.map_or(Ok(Source::Context), |from| self.source(&from))?,
            src: self.atoms("src", "(src PATH…)", &src)?,
            dst: self.one("dst", "(dst PATH)", &dst)?,
            exclude: exclude.map_or(Ok(Vec::new()), |exclude| self.atoms("exclude", "(exclude NAME…)", &exclude))?,
        })
    }

    fn source(&self, from: &Form<'_>) -> Result<Source> {
        let [sexp] = self.exactly("from", SOURCE, from)?;
        if let Some(atom) = sexp.atom() {
            return match &**atom {
                b"context" => Ok(Source::Context),
                _ => Err(self.unknown_source(sexp, atom.into_owned())),
            };
        }
        let form = self.form(sexp, "(build NAME)")?;
        if &**form.name != b"build" {
            return Err(self.unknown_source(form.head, form.name.into_owned()));
        }
        let [sexp] = self.exactly("build", "(build NAME)", &form)?;
        let name = self.atom("build", "(build NAME)", sexp)?;
        if !self.scope.has(&name) {
            let nearest = nearest(name.as_ref(), self.scope.names.iter().rev()).cloned();
            let is_nested = self.scope.counts.contains_key(&name);
            return Err(self.error(sexp, Kind::UnknownBuild { name, nearest, is_nested }));
        }
        Ok(Source::Build(name))
    }

    fn unknown_source(&self, at: Sexp<'_>, name: BString) -> ParseError {
        let nearest = nearest(name.as_ref(), ["context", "build"]);
        self.error(at, Kind::UnknownSource { name, nearest })
    }

    fn items<'t>(&self, sexp: Sexp<'t>, form: &'static str) -> Result<Items<'t>> {
        sexp.items().ok_or_else(|| self.error(sexp, Kind::NotAList { form }))
    }

    fn form<'t>(&self, whole: Sexp<'t>, form: &'static str) -> Result<Form<'t>> {
        let mut args = self.items(whole, form)?;
        let head = args.next().ok_or_else(|| self.error(whole, Kind::Nameless { form }))?;
        let name = head.atom().ok_or_else(|| self.error(head, Kind::Nameless { form }))?;
        Ok(Form { whole, head, name, args })
    }

    /// Sorts the fields of an operation into the order of `known`.
    fn fields<'t, const N: usize>(
        &self,
        op: &'static str,
        known: &'static [&'static str; N],
        args: Items<'t>,
    ) -> Result<[Option<Form<'t>>; N]> {
        let mut fields = [const { None }; N];
        for sexp in args {
            let form = self.form(sexp, "(FIELD …)")?;
            let Some(index) = known.iter().position(|field| field.as_bytes() == &**form.name) else {
                let nearest = nearest(&form.name, known.iter().copied());
                let name = form.name.into_owned();
                return Err(self.error(form.head, Kind::UnknownField { op, name, nearest, known }));
            };
            if fields[index].is_some() {
                return Err(self.error(form.head, Kind::RepeatedField { field: known[index] }));
            }
            fields[index] = Some(form);
        }
        Ok(fields)
    }

    fn required<'t>(
        &self,
        op: &'static str,
        field: &'static str,
        form_text: &'static str,
        form: &Form<'_>,
        value: Option<Form<'t>>,
    ) -> Result<Form<'t>> {
        value.ok_or_else(|| self.error(form.whole, Kind::MissingField { op, field, form: form_text }))
    }

    fn exactly<'t, const N: usize>(
        &self,
        name: &'static str,
        form_text: &'static str,
        form: &Form<'t>,
    ) -> Result<[Sexp<'t>; N]> {
        let args: Vec<_> = form.args.clone().collect();
        let found = args.len();
        args.try_into().map_err(|_| self.error(form.whole, Kind::WrongCount { name, found, form: form_text }))
    }

    fn atom(&self, name: &'static str, form: &'static str, sexp: Sexp<'_>) -> Result<BString> {
        let atom = sexp.atom().ok_or_else(|| self.error(sexp, Kind::NotAnAtom { name, form }))?;
        Ok(atom.into_owned())
    }

    fn one(&self, name: &'static str, form_text: &'static str, form: &Form<'_>) -> Result<BString> {
        let [sexp] = self.exactly(name, form_text, form)?;
        self.atom(name, form_text, sexp)
    }

    fn atoms(&self, name: &'static str, form_text: &'static str, form: &Form<'_>) -> Result<Vec<BString>> {
        form.args.clone().map(|sexp| self.atom(name, form_text, sexp)).collect()
    }
}
