//! `ovctl`: parses, asks the server or becomes one, and ends with the exit code of the contract.

use std::process::ExitCode;

use super::node::conclude;
use crate::api::{Problem, ProblemCode};
use crate::cli::args::{
    ChangeArgs, Format, Global, KubernetesCommand, Ovctl, OvctlCommand, PolicyCommand, ServeArgs,
};
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::{
    Outcome, audit, backup, completion, dns, entity, flow, group, key, kubernetes, overlay, path,
    policy, policy_offline, sap, status, token, why,
};

/// Runs `ovctl` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Ovctl { global, command } = match Ovctl::from_command_line() {
        Ok(parsed) => parsed,
        Err(problem) => return conclude(&mut Output::standard(Format::Json), Err(problem)),
    };
    let mut output = Output::standard(global.output);
    let outcome = dispatch(&global, command, &mut output);
    conclude(&mut output, outcome)
}

fn dispatch(
    global: &Global,
    command: OvctlCommand,
    output: &mut Output,
) -> Result<Outcome, Problem> {
    match command {
        OvctlCommand::Serve(args) => serve(global, args),
        OvctlCommand::Backup(args) => local(super::backup::back_up(global, args, output)),
        OvctlCommand::Restore(args) => match args.file.clone() {
            Some(file) => local(super::backup::restore(global, args, file, output)),
            None => ask(global, output, async |client, output| {
                backup::accept(client, output, &ChangeArgs::default().options()).await
            }),
        },
        OvctlCommand::Completion(args) => {
            output.raw(&completion::script(&args));
            Ok(Outcome::Done)
        }
        OvctlCommand::Dns(verb) => {
            ask(global, output, async |client, output| dns::run(client, output, verb).await)
        }
        OvctlCommand::Kubernetes(KubernetesCommand::Inject(args)) => {
            kubernetes::run(output, std::io::stdin().lock(), &args)
        }
        OvctlCommand::Manual { dir } => completion::write_manual(&dir).map(|()| Outcome::Done),
        OvctlCommand::Status => {
            ask(global, output, async |client, output| status::run(client, output).await)
        }
        OvctlCommand::Overlay(verb) => {
            ask(global, output, async |client, output| overlay::run(client, output, verb).await)
        }
        OvctlCommand::Token(verb) => {
            ask(global, output, async |client, output| token::run(client, output, verb).await)
        }
        OvctlCommand::Entity(verb) => {
            ask(global, output, async |client, output| entity::run(client, output, verb).await)
        }
        OvctlCommand::Path(verb) => {
            ask(global, output, async |client, output| path::run(client, output, verb).await)
        }
        OvctlCommand::Sap(verb) => {
            ask(global, output, async |client, output| sap::run(client, output, verb).await)
        }
        OvctlCommand::Policy(PolicyCommand::Offline(verb)) if verb.is_offline() => {
            policy_offline::run(output, &verb)
        }
        OvctlCommand::Policy(verb) => {
            ask(global, output, async |client, output| policy::run(client, output, verb).await)
        }
        OvctlCommand::Group(verb) => {
            ask(global, output, async |client, output| group::run(client, output, verb).await)
        }
        OvctlCommand::Service(verb) => ask(global, output, async |client, output| {
            group::run_service(client, output, verb).await
        }),
        OvctlCommand::Namespace(verb) => ask(global, output, async |client, output| {
            group::run_namespace(client, output, verb).await
        }),
        OvctlCommand::Key(verb) => {
            ask(global, output, async |client, output| key::run(client, output, verb).await)
        }
        OvctlCommand::Why(args) => {
            ask(global, output, async |client, output| why::run(client, output, args).await)
        }
        OvctlCommand::Flow(verb) => {
            ask(global, output, async |client, output| flow::run(client, output, verb).await)
        }
        OvctlCommand::Audit(verb) => {
            ask(global, output, async |client, output| audit::run(client, output, verb).await)
        }
    }
}

/// Runs one command against the server, on this thread alone.
fn ask(
    global: &Global,
    output: &mut Output,
    command: impl AsyncFnOnce(&Client, &mut Output) -> Result<Outcome, Problem>,
) -> Result<Outcome, Problem> {
    let runtime = runtime(tokio::runtime::Builder::new_current_thread())?;
    super::node::hide_memory()?;
    runtime.block_on(async {
        let client = Client::to_server(global, output)?;
        command(&client, output).await
    })
}

/// Runs what needs no server, on this thread alone.
fn local(work: impl Future<Output = Result<Outcome, Problem>>) -> Result<Outcome, Problem> {
    runtime(tokio::runtime::Builder::new_current_thread())?.block_on(work)
}

/// A tokio runtime with everything on.
fn runtime(mut builder: tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Problem> {
    builder.enable_all().build().map_err(|error| {
        Problem::new(ProblemCode::Failed, "cannot start the tokio runtime").why(error.to_string())
    })
}

fn serve(global: &Global, args: ServeArgs) -> Result<Outcome, Problem> {
    let runtime = runtime(tokio::runtime::Builder::new_multi_thread())?;
    let announce = |text: &str| super::node::note(text);
    runtime.block_on(super::serve::run(args, global.socket.clone(), announce))?;
    Ok(Outcome::Done)
}
