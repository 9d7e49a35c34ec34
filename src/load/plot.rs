//! The drawing of a run: latencies by percentile, and throughput by second. One SVG, written by hand: two polylines need no library.

use std::fmt::Write;

use super::curve::{Deed, SLOT};
use super::outcome::{Outcome, count, span};
use std::time::Duration;

const WIDTH: f64 = 880.0;
const PANEL: f64 = 240.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 60.0;
const GAP: f64 = 70.0;
const INK: &str = "#1f4e79";
/// Of a storm: who came, was let in, was turned away, in this order, each drawn over the one before.
const STORM_INKS: [(Deed, &str, &str); 3] =
    [(Deed::Came, "came", "#b0b0b0"), (Deed::LetIn, "let in", INK), (Deed::TurnedAway, "turned away", "#b03030")];
/// Points of the curve per decade of rarity.
const POINTS: usize = 40;
/// Percentiles on the axis: 1 in 10, in 100, and so on.
const DECADES: usize = 5;

/// One panel's place, and the values at its edges.
struct Panel {
    top: f64,
    x_max: f64,
    y_min: f64,
    y_max: f64,
}

impl Panel {
    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + PANEL - (value - self.y_min) / (self.y_max - self.y_min) * PANEL
    }

    fn frame(&self, svg: &mut String, title: &str) {
        let _ = writeln!(svg, r#"<text x="{LEFT}" y="{}" font-weight="bold">{}</text>"#, self.top - 10.0, escape(title));
        let _ = writeln!(
            svg,
            r##"<rect x="{LEFT}" y="{}" width="{}" height="{PANEL}" fill="none" stroke="#888"/>"##,
            self.top,
            WIDTH - LEFT - RIGHT
        );
    }

    fn x_mark(&self, svg: &mut String, value: f64, label: &str) {
        let (x, bottom) = (self.x(value), self.top + PANEL);
        let _ = writeln!(svg, r##"<line x1="{x:.1}" y1="{}" x2="{x:.1}" y2="{bottom}" stroke="#ddd"/>"##, self.top);
        let _ = writeln!(svg, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{}</text>"#, bottom + 18.0, escape(label));
    }

    fn y_mark(&self, svg: &mut String, value: f64, label: &str) {
        let y = self.y(value);
        let _ = writeln!(svg, r##"<line x1="{LEFT}" y1="{y:.1}" x2="{}" y2="{y:.1}" stroke="#ddd"/>"##, WIDTH - RIGHT);
        let _ = writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 8.0, y + 4.0, escape(label));
    }

    fn line(&self, svg: &mut String, points: impl Iterator<Item = (f64, f64)>) {
        self.line_in(svg, INK, points);
    }

    fn line_in(&self, svg: &mut String, ink: &str, points: impl Iterator<Item = (f64, f64)>) {
        let _ = write!(svg, r#"<polyline fill="none" stroke="{ink}" stroke-width="2" points=""#);
        for (x, y) in points {
            let _ = write!(svg, "{:.1},{:.1} ", self.x(x), self.y(y));
        }
        let _ = writeln!(svg, r#""/>"#);
    }
}

impl Outcome {
    /// The drawing, as the text of an SVG file.
    pub fn svg(&self) -> String {
        let mut body = String::new();
        let mut top = TOP + 20.0;
        if self.latencies().count() > 0 {
            self.latency_panel(&mut body, top);
            top += PANEL + GAP;
        }
        if self.is_traffic() {
            self.throughput_panel(&mut body, top);
            top += PANEL + GAP;
        }
        for number in 1..self.cycles.len() {
            self.storm_panel(&mut body, top, number);
            top += PANEL + GAP;
        }
        let height = top;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
        );
        let name = format!("{} {}", self.plan.scenario.name(), self.plan.target.template);
        let _ = writeln!(svg, r#"<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{}</text>"#, escape(&name));
        let _ = writeln!(svg, r#"<text x="{LEFT}" y="44">{}</text>"#, escape(&self.plan.summary()));
        svg.push_str(&body);
        svg.push_str("</svg>\n");
        svg
    }

    /// Across, how rare a latency is; up, the latency. Both logarithmic, or the tail would not be seen.
    fn latency_panel(&self, svg: &mut String, top: f64) {
        let latencies = self.latencies();
        // No further than there are values to tell.
        let decades = (latencies.count() as f64).log10().ceil().clamp(1.0, DECADES as f64);
        let micros = |percent: f64| latencies.percentile(percent).unwrap_or_default().as_secs_f64() * 1e6;
        let at = |decade: f64| micros(100.0 * (1.0 - 10f64.powf(-decade))).max(1e-3).log10();
        let steps = (decades * POINTS as f64) as usize;
        let curve: Vec<(f64, f64)> = (0..=steps).map(|step| step as f64 / POINTS as f64).map(|decade| (decade, at(decade))).collect();
        let low = curve.first().map_or(0.0, |(_, y)| y.floor());
        let high = curve.last().map_or(1.0, |(_, y)| y.ceil()).max(low + 1.0);
        let panel = Panel { top, x_max: decades, y_min: low, y_max: high };
        panel.frame(svg, &format!("Latency by percentile ({} values)", count(latencies.count())));
        panel.x_mark(svg, 0.5f64.log10().abs(), "p50");
        for decade in 1..=decades as usize {
            let label =
                if decade <= 2 { format!("p{}", 100 - 10usize.pow(2 - decade as u32)) } else { format!("p99.{}", "9".repeat(decade - 2)) };
            panel.x_mark(svg, decade as f64, &label);
        }
        for power in low as i32..=high as i32 {
            panel.y_mark(svg, f64::from(power), &span(Duration::from_secs_f64(10f64.powi(power) / 1e6)).to_string());
        }
        panel.line(svg, curve.into_iter());
    }

    /// The course of one storm.
    fn storm_panel(&self, svg: &mut String, top: f64, number: usize) {
        let curve = &self.cycles[number].curve;
        let slots = STORM_INKS.iter().map(|(deed, ..)| curve.of(*deed).len()).max().unwrap_or(0).max(1);
        let most = STORM_INKS.iter().map(|(deed, ..)| curve.peak(*deed).0).max().unwrap_or(0).max(1);
        let seconds = slots as f64 * SLOT.as_secs_f64();
        let panel = Panel { top, x_max: seconds, y_min: 0.0, y_max: most as f64 * 1.1 };
        panel.frame(svg, &format!("Storm {number}: clients in each 100 ms"));
        for tenth in 0..=10 {
            let at = seconds * f64::from(tenth) / 10.0;
            panel.x_mark(svg, at, &format!("{at:.1} s"));
        }
        for quarter in 0..=4 {
            let value = most as f64 * f64::from(quarter) / 4.0;
            panel.y_mark(svg, value, &count(value as u64));
        }
        for (index, (deed, name, ink)) in STORM_INKS.into_iter().enumerate() {
            let x = WIDTH - RIGHT - 240.0 + 90.0 * index as f64;
            let _ = writeln!(svg, r#"<text x="{x}" y="{}" fill="{ink}">{name}</text>"#, top - 10.0);
            let points = curve.of(deed).iter().enumerate();
            panel.line_in(svg, ink, points.map(|(slot, count)| ((slot as f64 + 0.5) * SLOT.as_secs_f64(), *count as f64)));
        }
    }

    fn throughput_panel(&self, svg: &mut String, top: f64) {
        let seconds = &self.tally.seconds;
        let most = seconds.iter().map(|second| second.deliveries).max().unwrap_or(0).max(1);
        let panel = Panel { top, x_max: seconds.len().max(1) as f64, y_min: 0.0, y_max: most as f64 * 1.1 };
        let warmup = self.start_to_begin.as_secs_f64();
        panel.frame(svg, &format!("Deliveries per second (measured from {warmup} s on)"));
        let step = seconds.len().div_ceil(12).max(1);
        for second in (0..=seconds.len()).step_by(step) {
            panel.x_mark(svg, second as f64, &format!("{second} s"));
        }
        for quarter in 0..=4 {
            let value = most as f64 * f64::from(quarter) / 4.0;
            panel.y_mark(svg, value, &count(value as u64));
        }
        panel.line(svg, seconds.iter().enumerate().map(|(at, second)| (at as f64 + 0.5, second.deliveries as f64)));
    }
}

/// Text for XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::load::curve::Deed;
    use crate::load::measure::Latencies;
    use crate::load::outcome::StormCycle;
    use crate::load::outcome::tests::outcome;
    use crate::load::storm::Cycle;

    /// Every tag is closed in order, and every text is escaped; the depth comes back to zero once.
    fn check_xml(xml: &str) {
        let mut open = Vec::new();
        let mut rest = xml;
        while let Some((text, after)) = rest.split_once('<') {
            assert!(!text.contains('>'), "a bare > in {text:?}");
            for (at, _) in text.match_indices('&') {
                assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|entity| text[at + 1..].starts_with(entity)), "a bare & in {text:?}");
            }
            let (tag, behind) = after.split_once('>').expect("a tag ends");
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes in {tag:?}");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("split yields one");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            rest = behind;
        }
        assert!(open.is_empty() && rest.trim().is_empty());
    }

    #[test]
    fn a_drawing_is_well_formed_and_has_both_curves() {
        let svg = outcome("fanout --url ws://127.0.0.1:1/ws?room={room}&x=\"<\"").svg();
        check_xml(&svg);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(
            svg.contains("room={room}&amp;x=&quot;&lt;&quot;") && svg.contains(">p99<") && !svg.contains("NaN") && !svg.contains("inf")
        );
    }

    #[test]
    fn a_storm_has_a_panel_of_three_curves() {
        let mut storm = outcome("storm --url ws://127.0.0.1:1/ --backoff none");
        storm.tally = Default::default();
        for came in [1, 300] {
            let mut cycle = Cycle::default();
            for millis in 0..came {
                cycle.curve.count(Deed::Came, Duration::from_millis(millis));
            }
            cycle.curve.count(Deed::LetIn, Duration::from_millis(came));
            let cycle = StormCycle::new(cycle, Duration::from_secs(1), None, &mut Latencies::default(), came > 1);
            storm.cycles.push(cycle);
        }
        let svg = storm.svg();
        check_xml(&svg);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("Storm 1:").count(), svg.matches("turned away").count()), (3, 1, 1));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn an_idle_run_has_a_drawing_without_curves() {
        let mut idle = outcome("idle --url ws://127.0.0.1:1/");
        idle.tally = Default::default();
        let svg = idle.svg();
        check_xml(&svg);
        assert_eq!(svg.matches("<polyline").count(), 0);
    }
}
