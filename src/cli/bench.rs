//! `shardcast bench`: gives the load generator what it needs of the system, and prints its report.

use std::process::ExitCode;

use super::{FAILED, USAGE, fail, print};
use crate::engine::sys;
use crate::load::{Ask, Host, LoadError, Outcome, Plan, local_ports};

/// Runs a scenario. A failed check is a failure, after the report.
pub(super) fn run(ask: Ask) -> ExitCode {
    let host = Host {
        // What cannot be raised is what there is.
        descriptors: sys::raise_nofile().unwrap_or_else(|_| sys::nofile_limits().0),
        local_ports: local_ports(),
        cpus: sys::allowed_cpus(),
        pin: sys::pin_to_cpu,
        sharp_sleep: sys::sharp_sleep,
        reset_on_close: |fd| sys::Socket(fd).reset_on_close(),
    };
    match Plan::new(ask, &host).and_then(|plan| {
        let (json, plot) = (plan.json, plan.plot.clone());
        crate::load::run(plan, host).map(|outcome| (outcome, json, plot))
    }) {
        Ok((outcome, json, plot)) => report(&outcome, json, plot.as_deref()),
        Err(error @ LoadError::Usage(_)) => fail(USAGE, error),
        Err(error @ LoadError::Failed(_)) => fail(FAILED, error),
    }
}

fn report(outcome: &Outcome, json: bool, plot: Option<&std::path::Path>) -> ExitCode {
    let mut code = print(if json { outcome.json() } else { outcome.text() });
    if let Some(path) = plot
        && let Err(error) = std::fs::write(path, outcome.svg())
    {
        code = fail(FAILED, format!("--plot {}: {error}", path.display()));
    }
    let failures = outcome.failures();
    if failures.is_empty() { code } else { fail(FAILED, failures.join("\n")) }
}
