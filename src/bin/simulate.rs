//! `simulate`: runs whole gateways over a kernel in memory, one simulation for each seed, and tells which seeds break a rule.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::IsTerminal;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use crossbeam_channel::unbounded;
use shardcast::engine::sim::Choices;
use shardcast::gateway::close_cause::CloseCause;
use shardcast::sim::{Obeys, Plan, Report, Storm, StormPlan, run};

/// Runs simulated gateways, one for each seed, and tells which seeds break a rule. A seed always gives the same run.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Begin at a seed that nobody has tried: it depends on the time.
    #[arg(long, conflicts_with = "first")]
    fresh: bool,
    /// Run this seed alone, tell what it consists of and what the gateway logs (RUST_LOG=debug for more).
    #[arg(long, conflicts_with_all = ["seeds", "first", "fresh"])]
    seed: Option<u64>,
    /// Simulations at a time; as many as there are processors if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Instead: so many event streams are lost at once and come back, with what they know of when to.
    #[arg(long, value_name = "CLIENTS", conflicts_with_all = ["seeds", "first", "fresh", "seed", "jobs", "first_finding"])]
    storm: Option<usize>,
    /// Shards in the storm.
    #[arg(long, default_value_t = 16, requires = "storm", value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: u16,
    /// Handshakes per second that they allow together; enough for all in 25 s if not given.
    #[arg(long, requires = "storm", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Stop at the first seed that breaks a rule.
    #[arg(long)]
    first_finding: bool,
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn main() -> ExitCode {
    let args = Args::parse();
    let alone = args.seed.is_some();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = alone.then(std::backtrace::Backtrace::force_capture).map(|trace| format!("\n{trace}"));
        PANIC.set(format!("{text} ({place}){}", backtrace.unwrap_or_default()));
    }));
    match (args.storm, args.seed) {
        (Some(clients), _) => storms(clients, &args),
        (None, Some(seed)) => one(seed),
        (None, None) => many(&args),
    }
}

/// Runs one seed; the report, or what was found.
fn simulate(seed: u64) -> Result<Report, String> {
    panic::catch_unwind(|| run(Choices::seeded(seed))).map_err(|_| PANIC.take())
}

fn one(seed: u64) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    println!("{:#?}", Plan::draw(&mut Choices::seeded(seed)));
    match simulate(seed) {
        Ok(report) => {
            println!("{report:#?}\nseed {seed}: every rule holds");
            ExitCode::SUCCESS
        }
        Err(finding) => {
            println!("seed {seed}: {finding}");
            ExitCode::FAILURE
        }
    }
}

/// For people, who want to know how long it took; nothing simulated reads a clock.
#[expect(clippy::disallowed_methods, reason = "only the report of a run has it")]
fn now() -> Instant {
    Instant::now()
}

/// A first seed that nobody has tried.
#[expect(clippy::disallowed_methods, reason = "no simulation depends on when it runs")]
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// The same clients come back three times: with all that they were told, with what refusals tell, and without.
fn storms(clients: usize, args: &Args) -> ExitCode {
    let per_second = args.rate.unwrap_or((clients as u64 / 25).max(1));
    println!("{clients} event streams on {} shards, all lost at once; {per_second} handshakes per second are allowed", args.shards);
    let mut found = 0;
    for obeys in Obeys::ALL {
        let plan = StormPlan { clients, shards: args.shards, per_second, obeys };
        let started = now();
        match panic::catch_unwind(|| plan.run()) {
            Ok(storm) => {
                show(&storm, &plan, started.elapsed());
                let findings = storm.findings(&plan);
                found += findings.len();
                findings.iter().for_each(|finding| println!("  FAILED: {finding}"));
            }
            Err(_) => {
                found += 1;
                println!("{obeys:?}: {}", PANIC.take());
            }
        }
    }
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(storm: &Storm, plan: &StormPlan, took: Duration) {
    let most = |slots: &[u64]| slots.iter().copied().max().unwrap_or(0);
    let sum = |slots: &[u64]| slots.iter().sum::<u64>();
    let back =
        storm.all_back.map_or("not all are back after 10 min".to_owned(), |time| format!("all are back after {:.1} s", time.as_secs_f64()));
    println!(
        "{:?}: {back}; {} arrivals, at most {} in 100 ms ({:.2} of the mean, budget {}); {} refusals, at most {} of one client; simulated in {:.0} s",
        plan.obeys,
        sum(&storm.arrivals),
        most(&storm.arrivals),
        storm.peak(),
        plan.per_second.div_ceil(10),
        sum(&storm.refusals),
        storm.refusals_of_one,
        took.as_secs_f64()
    );
    // A line for each tenth of the time.
    let slots = storm.arrivals.len().max(storm.returns.len());
    let part = |slots: &[u64], from: usize, to: usize| slots.iter().take(to).skip(from).sum::<u64>();
    for tenth in 0..10 {
        let (from, to) = (slots * tenth / 10, slots * (tenth + 1) / 10);
        println!(
            "  {:6.1} s to {:6.1} s: {:8} came, {:8} turned away, {:8} let in",
            from as f64 / 10.0,
            to as f64 / 10.0,
            part(&storm.arrivals, from, to),
            part(&storm.refusals, from, to),
            part(&storm.returns, from, to)
        );
    }
}

fn many(args: &Args) -> ExitCode {
    let started = now();
    let first = if args.fresh { fresh_seed() } else { args.first };
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (results, done) = unbounded();
    let (mut total, mut run, mut found) = (Report::default(), 0_u64, 0_u64);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (results, next, stop) = (results.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= args.seeds {
                        break;
                    }
                    let seed = first.wrapping_add(index);
                    let _ = results.send((seed, simulate(seed)));
                }
            });
        }
        drop(results);
        let watched = std::io::stderr().is_terminal();
        for (seed, result) in done {
            run += 1;
            match result {
                Ok(report) => total.add(&report),
                Err(finding) => {
                    found += 1;
                    println!(
                        "seed {seed}: {finding}\n  again: cargo run --profile sim --features simulate --bin simulate -- --seed {seed}"
                    );
                    stop.fetch_or(args.first_finding, Ordering::Relaxed);
                }
            }
            if watched && run.is_multiple_of(64) {
                eprint!("\r{run} of {} seeds, {found} findings ", args.seeds);
            }
        }
        if watched {
            eprint!("\r");
        }
    });
    summarise(&total, run, first, started.elapsed());
    println!("{} passed, {found} failed", run - found);
    if found == 0 && run > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the simulations went through: a rule that was never put to the test proves nothing.
fn summarise(total: &Report, run: u64, first: u64, took: Duration) {
    println!(
        "{run} seeds from {first} in {:.1} s: {:.0} s simulated, {} steps, {} messages said, {} heard, {} streams, {} answers to polls, {} talks, {} messages inflated, {} deflated, {} gaps, {} repeats, {} wake-ups, {} waits for buffers, {} pauses of accepting, {} of publishers",
        took.as_secs_f64(),
        total.nanos as f64 / 1e9,
        total.steps,
        total.said,
        total.heard,
        total.streams,
        total.polls,
        total.talks,
        total.inflated,
        total.deflated,
        total.gaps,
        total.repeats,
        total.wakes,
        total.starved,
        total.accept_paused,
        total.publishers_paused
    );
    let closes = CloseCause::ALL.iter().zip(&total.closes).filter(|(_, count)| **count > 0);
    let closes: Vec<String> = closes.map(|(cause, count)| format!("{} {count}", cause.label())).collect();
    println!("connections ended: {}", closes.join(", "));
}
