//! `sitepair`, the operator's command.
//!
//! Owns: the command line, what is printed for people and for programs, exit codes, `init`. Everything else is
//! asked of the agents. Does not do: decisions; an agent's refusal is printed as it came.

mod cli;
mod commands;
mod config;
mod connect;
mod disk;
mod error;
mod fleet;
mod hrl;
mod init;
mod materialize;
mod points;
mod progress;
mod table;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use serde::Serialize;

use crate::cli::{Cli, Command, HrlCommand, Output, StatusArgs, TestCommand};
use crate::config::Config;
use crate::error::Failure;
use crate::fleet::{Fleet, site_name};
use crate::table::Page;
use crate::view::{Agent, Done, Failed, SCHEMA, SiteStatus, Status};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = cli.output;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(e) => Err(e.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, output);
            ExitCode::from(failure.code())
        }
    }
}

#[expect(clippy::print_stderr, reason = "failures go to standard error")]
fn report(failure: &Failure, output: Output) {
    match output {
        // The answer was printed.
        _ if matches!(
            failure,
            Failure::Different | Failure::FoundWarnings | Failure::FoundErrors
        ) => {}
        Output::Table => eprintln!("sitepair: {failure}"),
        Output::Json => {
            let failed = Failed {
                schema: SCHEMA,
                error: failure.to_string(),
                code: failure.code(),
            };
            eprintln!(
                "{}",
                serde_json::to_string(&failed).unwrap_or_else(|_| failure.to_string())
            );
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let output = cli.output;
    // What needs no agent.
    let command = match cli.command {
        Command::Init(args) => return print(output, &init::init(&args)?, table::done),
        Command::Hrl(HrlCommand::Inspect { file }) => return hrl::inspect(&file, output),
        Command::Hrl(HrlCommand::Verify { logs }) => return hrl::verify(&logs, output),
        Command::Hrl(HrlCommand::Apply(args)) => {
            return print(output, &hrl::apply(&args)?, table::done);
        }
        Command::Disk(command) => return disk::run(command, output).await,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "sitepair",
                &mut std::io::stdout(),
            );
            return Ok(());
        }
        asks => asks,
    };
    let fleet = Fleet::new(Config::load(cli.config.as_deref())?, cli.site);
    let bar = output == Output::Table && std::io::stderr().is_terminal();
    let done = match command {
        Command::Status(args) => return status(&fleet, args, output).await,
        Command::Points(args) => {
            return print(output, &points::list(&fleet, args).await?, |points| {
                table::points(points, Page::here())
            });
        }
        Command::Materialize(args) => return materialize::run(&fleet, args, output).await,
        Command::Retention(args) => points::retention(&fleet, args).await?,
        Command::Pin(args) => points::pin(&fleet, args).await?,
        Command::Unpin(args) => points::unpin(&fleet, args).await?,
        Command::Label(args) => points::label(&fleet, args).await?,
        Command::Protect(args) => commands::protect(&fleet, args, bar).await?,
        Command::Unprotect(args) => commands::unprotect(&fleet, args).await?,
        Command::Pause(args) => commands::pause(&fleet, args.group).await?,
        Command::Resume(args) => commands::resume(&fleet, args.group).await?,
        Command::Cut(args) => commands::cut(&fleet, args).await?,
        Command::Failover(args) => commands::failover(&fleet, args, bar).await?,
        Command::Reverse(args) => commands::reverse(&fleet, args.group).await?,
        Command::ForceOpen(args) => commands::force_open(&fleet, args).await?,
        Command::Export(args) => commands::export(&fleet, args).await?,
        Command::Unexport(args) => commands::unexport(&fleet, args).await?,
        Command::Test(TestCommand::Start(args)) => commands::start_test(&fleet, args).await?,
        Command::Test(TestCommand::End { group, name }) => {
            commands::end_test(&fleet, group, name).await?
        }
        Command::Hrl(HrlCommand::Export(args)) => hrl::export(&fleet, args, bar).await?,
        Command::Init(_) | Command::Hrl(_) | Command::Disk(_) | Command::Completions { .. } => {
            Done::new(false, "")
        }
    };
    print(output, &done, table::done)
}

/// Time between two pictures of `status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

#[expect(clippy::print_stdout, reason = "printing is what a command does")]
async fn status(fleet: &Fleet, args: StatusArgs, output: Output) -> Result<(), Failure> {
    let group = args.group.unwrap_or_default();
    loop {
        let status = ask_status(fleet, &group).await?;
        match output {
            Output::Json if args.watch => {
                let line = serde_json::to_string(&status).map_err(anyhow::Error::from)?;
                println!("{line}");
            }
            Output::Json | Output::Table => {
                if args.watch && std::io::stdout().is_terminal() {
                    // Home, and clear what is below.
                    print!("\x1b[H\x1b[J");
                }
                print(output, &status, |status| {
                    table::status(status, Page::here())
                })?;
            }
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

async fn ask_status(fleet: &Fleet, group: &str) -> Result<Status, Failure> {
    let (mut sites, mut known, mut failures) = (Vec::new(), false, Vec::new());
    for answer in fleet.status(group).await {
        let site = site_name(answer.site).to_owned();
        sites.push(match answer.result {
            Ok(reply) => {
                known = true;
                SiteStatus {
                    site,
                    reachable: true,
                    error: None,
                    agent: Some(Agent::from(reply)),
                }
            }
            Err(failure) => {
                let reachable = !matches!(failure, Failure::Unreachable(_));
                let error = Some(failure.to_string());
                failures.push(failure);
                SiteStatus {
                    site,
                    reachable,
                    error,
                    agent: None,
                }
            }
        });
    }
    if !known && failures.len() > 1 && failures.iter().all(|f| matches!(f, Failure::NotFound(_))) {
        return Err(Failure::NotFound(format!(
            "no group {group:?} is protected; `sitepair status` lists those that are"
        )));
    }
    // One site that answers is worth showing; none is a failure.
    match failures.into_iter().next() {
        Some(failure) if !known => Err(failure),
        _ => Ok(Status {
            schema: SCHEMA,
            sites,
        }),
    }
}

fn print<T: Serialize>(
    output: Output,
    what: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let text = match output {
        Output::Table => table(what),
        Output::Json => serde_json::to_string_pretty(what).map_err(anyhow::Error::from)?,
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // Who reads us has seen enough, as `head` does.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
