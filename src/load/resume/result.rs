//! What came of coming back: for each cycle and of all, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Part;
use crate::load::measure::Latencies;
use crate::load::outcome::{count, kinds, latency_json, micros, span};
use crate::load::plan::Resume;

/// CPU time of the server from the first that came back to the last that was complete.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(in crate::load) struct ServerCpu {
    /// All of it, the watchers' messages included.
    pub(in crate::load) all: Duration,
    /// Without as much as the quiet phase took in the same time. Too little where watchers' messages were put off or went out together.
    pub(in crate::load) beyond_quiet: Duration,
}

impl ServerCpu {
    fn each(self, clients: u64) -> Self {
        let [all, beyond_quiet] = [self.all, self.beyond_quiet].map(|time| time.div_f64(clients.max(1) as f64));
        Self { all, beyond_quiet }
    }
}

/// One time that all came back.
#[derive(Debug)]
pub(in crate::load) struct ResumedCycle {
    complete: Latencies,
    /// Attempts that failed, and streams that ended meanwhile, by how.
    failures: BTreeMap<String, u64>,
    given_up: u64,
    incomplete: u64,
    gaps: u64,
    server_cpu: Option<ServerCpu>,
}

impl ResumedCycle {
    pub(in crate::load) fn new(part: Part, server_cpu: Option<ServerCpu>) -> Self {
        let Part { opened, complete, incomplete, gaps, .. } = part;
        Self { complete, failures: opened.failures, given_up: opened.given_up, incomplete, gaps, server_cpu }
    }

    /// When the first, half and all of them were complete.
    fn times(&self) -> [Option<Duration>; 3] {
        [0.0, 50.0, 100.0].map(|percent| self.complete.percentile(percent))
    }

    fn cpu_each(&self) -> Option<ServerCpu> {
        self.server_cpu.filter(|_| self.complete.count() > 0).map(|cpu| cpu.each(self.complete.count()))
    }

    pub(in crate::load) fn line(&self) -> String {
        let mut line = format!("{} complete", count(self.complete.count()));
        if let [Some(first), Some(half), Some(all)] = self.times() {
            let _ = write!(line, ": the first after {}, half of them {}, all {}", span(first), span(half), span(all));
        }
        if let Some(each) = self.cpu_each() {
            let _ = write!(
                line,
                "; {:.1} µs of the server's CPU each, {:.1} beyond the quiet phase's",
                micros(each.all),
                micros(each.beyond_quiet)
            );
        }
        if !self.failures.is_empty() {
            let _ = write!(line, "; {}", kinds(&self.failures));
        }
        for (number, what) in [(self.given_up, "gave up"), (self.incomplete, "were not complete in time"), (self.gaps, "gaps")] {
            if number > 0 {
                let _ = write!(line, "; {} {what}", count(number));
            }
        }
        line
    }

    fn json(&self) -> Value {
        let [first, half, all] = self.times().map(|time| time.map(|time| time.as_secs_f64()));
        json!({
            "resumed": self.complete.count(),
            "first_seconds": first,
            "median_seconds": half,
            "all_seconds": all,
            "server_cpu_us_each": self.cpu_each().map(|each| micros(each.all)),
            "server_cpu_us_each_beyond_quiet": self.cpu_each().map(|each| micros(each.beyond_quiet)),
            "failed": self.failures,
            "given_up": self.given_up,
            "incomplete": self.incomplete,
            "gaps": self.gaps,
        })
    }
}

/// All of them.
#[derive(Debug)]
pub(in crate::load) struct Resumed {
    plan: Resume,
    pub(in crate::load) cycles: Vec<ResumedCycle>,
    /// Gaps outside of the cycles' coming back, when everyone was there.
    pub(in crate::load) other_gaps: u64,
    /// Latencies of the watchers: with nobody coming back, and while all were.
    pub(in crate::load) before: Latencies,
    pub(in crate::load) during: Latencies,
}

impl Resumed {
    pub(in crate::load) fn new(plan: Resume) -> Self {
        Self { plan, cycles: Vec::new(), other_gaps: 0, before: Latencies::default(), during: Latencies::default() }
    }

    /// Clients that came back and got everything, over all cycles.
    pub(in crate::load) fn count(&self) -> u64 {
        self.cycles.iter().map(|cycle| cycle.complete.count()).sum()
    }

    /// The server's CPU time for one of them, all that it used.
    pub(in crate::load) fn cpu_each(&self) -> Option<Duration> {
        let cpu: Option<Duration> = self.cycles.iter().map(|cycle| Some(cycle.server_cpu?.all)).sum();
        cpu.filter(|_| self.count() > 0).map(|cpu| cpu.div_f64(self.count() as f64))
    }

    fn gaps(&self) -> u64 {
        self.other_gaps + self.cycles.iter().map(|cycle| cycle.gaps).sum::<u64>()
    }

    /// What fails the run: one sentence each.
    pub(in crate::load) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let of = |pick: fn(&ResumedCycle) -> u64| self.cycles.iter().map(pick).sum::<u64>();
        let (given_up, incomplete, gaps) = (of(|cycle| cycle.given_up), of(|cycle| cycle.incomplete), self.gaps());
        if given_up > 0 {
            let mut how: BTreeMap<String, u64> = BTreeMap::new();
            for (kind, number) in self.cycles.iter().flat_map(|cycle| &cycle.failures) {
                *how.entry(kind.clone()).or_default() += number;
            }
            failures.push(format!("{} times a client gave up coming back: {}", count(given_up), kinds(&how)));
        }
        if incomplete > 0 {
            failures.push(format!("{} times a client that came back did not get everything in time", count(incomplete)));
        }
        if gaps > 0 {
            failures.push(format!(
                "{} times a client was told of a gap (shardcast:gap): the server must keep more than the {} messages of --behind (limits.history_messages, limits.history_age_ms, limits.history_bytes_max)",
                count(gaps),
                self.plan.behind
            ));
        }
        if self.before.count() == 0 {
            failures.push("the watchers got nothing in the quiet phases; take a longer --duration or a higher --rate".to_owned());
        }
        failures
    }

    /// Lines of the text report: their names, and what they say.
    pub(in crate::load) fn lines(&self) -> Vec<(String, String)> {
        let mut lines: Vec<_> =
            self.cycles.iter().enumerate().map(|(number, cycle)| (format!("resume {}", number + 1), cycle.line())).collect();
        for (name, what, latencies) in [("watchers", "before", &self.before), ("", "during", &self.during)] {
            let shown = [("p50", 50.0), ("p99", 99.0), ("max", 100.0)].map(|(name, percent)| {
                format!("{name} {}", latencies.percentile(percent).map_or("-".to_owned(), |time| span(time).to_string()))
            });
            let ratio = self.ratio().filter(|_| what == "during").map_or(String::new(), |ratio| format!("  (p99 × {ratio:.2})"));
            lines.push((name.to_owned(), format!("{what}: {} of {} deliveries{ratio}", shown.join("  "), count(latencies.count()))));
        }
        lines
    }

    /// The watchers' p99 while others come back, divided by that before.
    fn ratio(&self) -> Option<f64> {
        let [before, during] = [&self.before, &self.during].map(|latencies| latencies.percentile(99.0));
        Some(during?.as_secs_f64() / before?.as_secs_f64())
    }

    pub(in crate::load) fn json(&self) -> Value {
        let [first, half, all] = [0, 1, 2].map(|which| {
            let mut times: Vec<Duration> = self.cycles.iter().filter_map(|cycle| cycle.times()[which]).collect();
            times.sort_unstable();
            times.get(times.len() / 2).map(Duration::as_secs_f64)
        });
        json!({
            "behind": self.plan.behind,
            "watchers": self.plan.watchers,
            "resumed": self.count(),
            "first_seconds": first,
            "median_seconds": half,
            "all_seconds": all,
            "gaps": self.gaps(),
            "watchers_before": latency_json(&self.before),
            "watchers_during": latency_json(&self.during),
            "watchers_p99_ratio": self.ratio(),
            "cycles": self.cycles.iter().map(ResumedCycle::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two cycles of ten clients, complete after 1 to 10 and 2 to 20 ms.
    fn resumed() -> Resumed {
        let mut resumed = Resumed::new(Resume { comers: 10, behind: 50, watchers: 3 });
        for cycle in 1..=2 {
            let mut part = Part::default();
            for client in 1..=10 {
                part.complete.record(Duration::from_millis(cycle * client));
            }
            let cpu = ServerCpu { all: Duration::from_millis(10 * cycle), beyond_quiet: Duration::from_millis(5 * cycle) };
            resumed.cycles.push(ResumedCycle::new(part, Some(cpu)));
        }
        resumed.before.record(Duration::from_millis(2));
        resumed.during.record(Duration::from_millis(3));
        resumed
    }

    #[test]
    fn times_are_of_the_first_half_and_all_and_cpu_of_each() {
        let resumed = resumed();
        let cycle = &resumed.cycles[1];
        let rounded = cycle.times().map(|time| time.map(|time| time.as_secs_f64().mul_add(1000.0, 0.5) as u32));
        let each = ServerCpu { all: Duration::from_millis(2), beyond_quiet: Duration::from_millis(1) };
        assert_eq!((rounded, cycle.cpu_each()), ([Some(2), Some(10), Some(20)], Some(each)));
        assert!(cycle.line().starts_with("10 complete: the first after 2.0"), "{}", cycle.line());
        assert_eq!((resumed.count(), resumed.cpu_each()), (20, Some(Duration::from_micros(1500))));
        assert_eq!(resumed.failures(), Vec::<String>::new());
        let report = resumed.json();
        assert!(report["watchers_p99_ratio"].as_f64().is_some_and(|ratio| (1.49..1.51).contains(&ratio)), "{report}");
        assert!(resumed.lines().last().is_some_and(|(_, line)| line.ends_with("of 1 deliveries  (p99 × 1.50)")), "{:?}", resumed.lines());
    }

    #[test]
    fn who_gives_up_is_not_complete_or_hears_of_a_gap_fails_the_run() {
        let mut resumed = resumed();
        resumed.cycles[0].given_up = 1;
        resumed.cycles[0].failures.insert("closed 4503".to_owned(), 20);
        resumed.cycles[1].incomplete = 2;
        resumed.cycles[1].gaps = 3;
        resumed.other_gaps = 4;
        resumed.before = Latencies::default();
        let failures = resumed.failures();
        for (failure, says) in failures.iter().zip(["20 × closed 4503", "2 times", "7 times a client was told of a gap", "--duration"]) {
            assert!(failure.contains(says), "{failures:?}");
        }
        assert_eq!(failures.len(), 4);
        let line = resumed.cycles[1].line();
        assert!(line.ends_with("; 2 were not complete in time; 3 gaps"), "{line}");
        let nobody = ResumedCycle::new(Part::default(), None);
        assert_eq!((nobody.line().as_str(), nobody.json()["all_seconds"].is_null()), ("0 complete", true));
    }
}
