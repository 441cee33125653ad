//! Dockerfiles and the plans that they stand for.

use super::*;
use crate::build::program::read;

fn base() -> StageConfig {
    StageConfig {
        image: ImageConfig {
            env: vec!["PATH=/bin".into(), "LANG=C".into()],
            cmd: vec!["base-cmd".into()],
            ..Default::default()
        },
        ..Default::default()
    }
}

fn plan_with(text: &str, args: &[(&str, &str)]) -> Result<Vec<StagePlan>, BuildError> {
    let args = args.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let program = read(text, &args)?;
    (0..program.stages.len()).map(|index| program.plan(index, &base(), &args)).collect()
}

/// Of the last stage.
fn plan(text: &str) -> StagePlan {
    plan_with(text, &[]).unwrap().pop().unwrap()
}

/// Of one instruction after `FROM base`.
fn config(instructions: &str) -> StageConfig {
    plan(&format!("FROM base\n{instructions}")).config
}

fn runs(plan: &StagePlan) -> Vec<&RunStep> {
    let run = |step: &'_ Step| matches!(step.action, Action::Run(_));
    let steps = plan.steps.iter().filter(|step| run(step));
    steps.map(|step| if let Action::Run(run) = &step.action { run } else { unreachable!() }).collect()
}

fn copy(instructions: &str) -> CopyStep {
    let plan = plan(&format!("FROM base AS first\nFROM base\n{instructions}"));
    match plan.steps.into_iter().next_back().unwrap().action {
        Action::Copy(copy) => copy,
        other => panic!("not a copy: {other:?}"),
    }
}

/// `text`'s error, without `Dockerfile line `.
fn refused(text: &str) -> String {
    let error = plan_with(text, &[]).expect_err(text).to_string();
    error.strip_prefix("Dockerfile line ").expect("a line").to_owned()
}

fn env_of(config: &StageConfig) -> Vec<&str> {
    config.image.env.iter().skip(2).map(String::as_str).collect()
}

#[test]
fn env_is_expanded_with_what_was_known_before_the_line() {
    for (text, expected) in [
        ("ENV a=1 b=$a\nENV c=$a", vec!["a=1", "b=", "c=1"]),
        ("ENV a hello  world \nENV b='x y' c=\"$a\"", vec!["a=hello  world", "b=x y", "c=hello  world"]),
        ("ENV a=1\nENV a=2", vec!["a=2"]),
        ("ENV n=a $n=1", vec!["n=a", "=1"]),
        ("ARG x=1\nENV y=$x", vec!["y=1"]),
        ("ENV x=env\nARG x=arg\nENV y=$x", vec!["x=env", "y=env"]),
        ("ENV a=x\\\ny b=2", vec!["a=xy", "b=2"]),
        ("ENV P=$PATH:/x U=${NONE:-d}", vec!["P=/bin:/x", "U=d"]),
    ] {
        let planned = plan_with(&format!("FROM base\n{text}"), &[]);
        match planned {
            Ok(mut stages) => assert_eq!(env_of(&stages.pop().unwrap().config), expected, "{text}"),
            // `$n=1` with n unset is a variable without a name.
            Err(error) => assert!(text.contains("$n=1"), "{text}: {error}"),
        }
    }
}

#[test]
fn args_are_scoped_to_their_stage_and_never_leave_it() {
    let text = "ARG v=1\nARG w=${v}2\nFROM a$w AS one\nARG v\nRUN one\nFROM one\nRUN two\nARG v=9\nARG HTTP_PROXY\nRUN three";
    let stages = plan_with(text, &[]).unwrap();
    let given = plan_with(text, &[("v", "7"), ("NOBODY", "x"), ("HTTP_PROXY", "p")]).unwrap();
    let program = read(text, &BTreeMap::new()).unwrap();

    assert_eq!(program.stages[0].base, Base::Image("a12".into()));
    assert_eq!(program.stages[1].base, Base::Stage(0));
    let v = |plan: &StagePlan, run: usize| runs(plan)[run].env.get("v").cloned();
    assert_eq!(
        (v(&stages[0], 0), v(&stages[1], 0), v(&stages[1], 1)),
        (Some("1".into()), None, Some("9".into()))
    );
    assert_eq!((v(&given[0], 0), v(&given[1], 1)), (Some("7".into()), Some("7".into())));
    assert_eq!(runs(&given[1])[0].env.get("HTTP_PROXY").map(String::as_str), Some("p"));
    assert!(!runs(&given[1])[0].env.contains_key("NOBODY"));
    assert_eq!(stages[1].config.image.env, base().image.env);
}

#[test]
fn run_takes_shell_exec_and_here_document_forms() {
    let sh = |text: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
    for (text, argv) in [
        ("RUN echo  $X | cat", sh("echo  $X | cat")),
        ("RUN a && \\\n # why\n b", sh("a &&  b")),
        ("RUN [\"a\", \"b c\"]", vec!["a".into(), "b c".into()]),
        ("RUN ['a']", sh("['a']")),
        ("RUN \"bash\" \"-c\" \"x\"", sh("\"bash\" \"-c\" \"x\"")),
        ("RUN <<EOF\na $X\nb\nEOF", sh("a $X\nb\n")),
        ("RUN <<-'EOF'\n\ta\n\tEOF", sh("a\n")),
        ("RUN cat <<A >/a; cat <<B >/b\n1\nA\n2\nB", sh("cat <<A >/a; cat <<B >/b\n1\nA\n2\nB")),
        ("SHELL [\"/bin/bash\", \"-ec\"]\nRUN x", vec!["/bin/bash".into(), "-ec".into(), "x".into()]),
    ] {
        let plan = plan(&format!("FROM base\n{text}"));
        assert_eq!(runs(&plan)[0].argv, argv, "{text}");
    }
    let script = plan("FROM base\nRUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF");
    assert_eq!(runs(&script)[0].argv[4], "#!/usr/bin/env python3\nprint(1)\n");
}

#[test]
fn user_folder_and_network_stand_for_what_follows() {
    let plan = plan(
        "FROM base\nRUN a\nUSER app:1000\nWORKDIR /srv/x\nWORKDIR ../y/./z\nARG U=u\nWORKDIR \"$U v\"\nRUN --network=none b",
    );
    let runs = runs(&plan);

    assert_eq!((runs[0].user.as_str(), runs[0].work_dir.as_str()), ("root", "/"));
    assert_eq!((runs[1].user.as_str(), runs[1].work_dir.as_str()), ("app:1000", "/srv/y/z/u v"));
    assert_eq!((runs[0].network, runs[1].network), (Network::Open, Network::Blocked));
    assert!(plan.steps.iter().any(|step| step.action == Action::MakeDir("/srv/y/z".into())));
}

#[test]
fn entrypoint_forgets_the_bases_command_but_not_its_own() {
    let words = |config: StageConfig| (config.image.entrypoint, config.image.cmd);
    let strings = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();

    assert_eq!(words(config("ENV a=b")), (vec![], strings(&["base-cmd"])));
    assert_eq!(words(config("ENTRYPOINT [\"e\"]")), (strings(&["e"]), vec![]));
    assert_eq!(words(config("CMD [\"c\"]\nENTRYPOINT [\"e\"]")), (strings(&["e"]), strings(&["c"])));
    assert_eq!(words(config("CMD c $X")), (vec![], strings(&["/bin/sh", "-c", "c $X"])));
    assert_eq!(words(config("CMD []")), (vec![], vec![]));
}

#[test]
fn labels_ports_volumes_and_signals_are_recorded() {
    let config = config(
        "LABEL a=1 \"b c\"=\"x y\"\nLABEL old style\nEXPOSE 80 53/udp 8000-8010\nVOLUME /a /b\nVOLUME [\"/c\"]\nSTOPSIGNAL SIGQUIT\nHEALTHCHECK CMD x",
    );

    let labels: Vec<_> = config.image.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(labels, ["a=1", "b c=x y", "old=style"]);
    assert_eq!(config.exposed_ports.into_iter().collect::<Vec<_>>(), ["53/udp", "80/tcp", "8000-8010/tcp"]);
    assert_eq!(config.volumes.into_iter().collect::<Vec<_>>(), ["/a", "/b", "/c"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
}

#[test]
fn copy_knows_where_from_where_to_and_whose() {
    let plain = copy("COPY a b/../c /dest/");
    assert_eq!(plain.sources, ["a", "c"]);
    assert_eq!(plain.dest, Dest { path: "/dest".into(), is_dir: true });
    assert_eq!((plain.from, plain.unpack), (None, false));

    let relative = copy("WORKDIR /w\nCOPY [\"home/me/a b\", \"./x\"]");
    assert_eq!(relative.sources, ["home/me/a b"]);
    assert_eq!(relative.dest, Dest { path: "/w/x".into(), is_dir: false });
    assert!(copy("COPY . .").dest.is_dir);

    let flags = copy("ARG u=me\nCOPY --from=first --chown=$u:10 --chmod=755 --link ../../x /y");
    assert_eq!(flags.from, Some(Base::Stage(0)));
    assert_eq!((flags.chown.as_deref(), flags.chmod), (Some("me:10"), Some(0o755)));
    assert_eq!(flags.sources, ["x"]);

    assert_eq!(copy("COPY --from=0 a /").from, Some(Base::Stage(0)));
    assert_eq!(copy("COPY --from=busybox:1 a /").from, Some(Base::Image("busybox:1".into())));
    assert!(copy("ADD a.tar /").unpack);

    let inline = copy("ENV x=1\nCOPY <<a.txt <<'b' /d/\nv $x \"q\"\na.txt\nv $x\nb");
    assert_eq!(inline.inline, [("a.txt".into(), "v 1 \"q\"\n".into()), ("b".into(), "v $x\n".to_owned())]);
}

#[test]
fn what_is_not_supported_is_refused_with_its_line() {
    for (text, reason) in [
        ("RUN a", "1: expected FROM"),
        ("FROM a\n\nFLY x", "3: unknown instruction"),
        ("FROM a\nONBUILD RUN x", "2: ONBUILD is not supported"),
        ("FROM a\nRUN --mount=type=secret,id=x y", "2: RUN --mount=type=secret is not supported"),
        ("FROM a\nRUN --mount=target=/x y", "2: RUN --mount=type=bind is not supported"),
        ("FROM a\nRUN --security=insecure y", "2: RUN --security=insecure is not supported"),
        ("FROM a\nRUN --network=host y", "2: RUN --network=host is not supported"),
        ("FROM a\nRUN x \\\n y\nADD https://x/y /", "4: ADD of a URL is not supported; fetch it with RUN"),
        ("FROM a\nCOPY --parents a /", "2: COPY --parents is not supported"),
        ("FROM a\nCOPY a b /c", "2: COPY of several sources needs a destination that ends with /"),
        ("FROM a\nCOPY --from=3 b /c", "2: there is no earlier stage 3"),
        ("FROM a\nCOPY --chmod=u+x b /c", "2: --chmod takes octal digits like 0755, not \"u+x\""),
        ("FROM a\nENV x=${y%%z}", "2: ${y…%…} is not supported; -, + and ? are"),
        ("FROM a\nENV x='", "2: the quote ' is not closed"),
        ("FROM a\nENV x", "2: ENV needs a name and a value"),
        ("FROM a\nENV x=1 y", "2: ENV takes name=value, which y is not"),
        ("FROM a\nENV x=\"${y:?is needed}\"", "2: y: is needed"),
        ("FROM a\nEXPOSE 99999", "2: 99999 is no port"),
        ("FROM ${X}", "1: FROM ${X} names no image"),
        ("FROM --platform=linux/s390x a", "1: platform linux/s390x: this node builds for linux/amd64"),
        ("FROM a AS 1x", "1: 1x is no name for a stage: [a-z][a-z0-9-_.]*"),
    ] {
        let said = refused(text);
        assert!(said.starts_with(reason), "{text}\n  said {said}\n  not  {reason}");
    }
}

#[test]
fn variables_that_double_on_each_line_end_at_the_bound() {
    let doubling = "ENV a=$a$a\n".repeat(40);

    assert!(refused(&format!("FROM a\nENV a=xxxx\n{doubling}")).contains("more than"));
}

#[test]
fn what_the_sdk_writes_is_understood() {
    let text = "FROM python:3.12.10-slim-bookworm\nRUN apt-get update\nRUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections\nRUN python -m pip install numpy 'pandas>=2' --index-url 'https://x/y z'\nCOPY home/me/requirements.txt /.requirements.txt\nCOPY [\"home/me/a b.py\", \"/app/a b.py\"]\nRUN \"bash\" \"-c\" \"echo \\\\\\\"hi\\\\\\\"\"\nENV A='it'\"'\"'s $HOME' B=\nWORKDIR '/home/my dir'\nENTRYPOINT [\"/bin/bash\", \"-l\"]\nCMD [\"x\"]\n";
    let plan = plan(text);

    assert_eq!(env_of(&plan.config), ["A=it's $HOME", "B="]);
    assert_eq!(plan.config.image.work_dir.as_deref(), Some("/home/my dir"));
    assert_eq!(plan.config.image.entrypoint, ["/bin/bash", "-l"]);
    assert_eq!(runs(&plan)[3].argv[2], "\"bash\" \"-c\" \"echo \\\\\\\"hi\\\\\\\"\"");
    assert_eq!(plan.steps[4].line, 6);
    assert_eq!(plan.steps[4].text, "COPY [\"home/me/a b.py\", \"/app/a b.py\"]");
}
