//! The command line: words in, exit code out.
//!
//! 0 done, 1 failed, 2 usage: a command line, an environment variable or a configuration file that is wrong.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod check;
mod talk;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use self::args::{Cli, Command, ConfigCommand, Settings};
use crate::server::config::{Effective, Layers, default_file};
use crate::server::{logging, supervisor};

const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Does what the command line of this process says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come this way too, with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED));
        }
    };
    match cli.command.unwrap_or(Command::Serve(cli.settings)) {
        Command::Serve(settings) => serve(settings),
        Command::Check(settings) => with_config(settings, |effective| print(check::report(&effective.config))),
        Command::Bench(ask) => bench::run(*ask),
        Command::Sub(ask) => talk::sub(*ask),
        Command::Pub(ask) => talk::publish(*ask),
        Command::Config(ConfigCommand::Show(settings)) => with_config(*settings, |effective| print(effective.show())),
        Command::Config(ConfigCommand::Check { file }) => config_check(file),
        Command::Config(ConfigCommand::Default) => print(default_file()),
    }
}

fn serve(settings: Settings) -> ExitCode {
    with_config(settings, |effective| {
        if let Err(error) = logging::init(&effective.config.log) {
            return fail(FAILED, error);
        }
        match supervisor::serve(effective.config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(FAILED, error),
        }
    })
}

fn config_check(file: Option<PathBuf>) -> ExitCode {
    match Layers::read(file, Vec::new()).and_then(|layers| layers.resolve().map(|_| layers.file)) {
        Ok(Some((path, _))) => print(format!("{}: no problems\n", path.display())),
        Ok(None) => print("No file was named (config check FILE, or SHARDCAST_CONFIG); the environment has no problems.\n"),
        Err(error) => fail(USAGE, error),
    }
}

fn with_config(settings: Settings, then: impl FnOnce(Effective) -> ExitCode) -> ExitCode {
    let (file, flags) = settings.into_layers();
    match Layers::read(file, flags).and_then(|layers| layers.resolve()) {
        Ok(effective) => then(effective),
        Err(error) => fail(USAGE, error),
    }
}

fn print(text: impl Display) -> ExitCode {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // `shardcast config default | head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("output cannot be written: {error}")),
    }
}

/// Says what went wrong, each line with the program's name in front.
fn fail(code: u8, error: impl Display) -> ExitCode {
    let mut err = io::stderr().lock();
    for line in error.to_string().lines() {
        let _ = writeln!(err, "shardcast: {line}");
    }
    ExitCode::from(code)
}
