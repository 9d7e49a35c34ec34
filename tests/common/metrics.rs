//! A scrape of `/metrics`, as samples.

use std::collections::BTreeMap;

/// One line of the scrape.
#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Reads the text format: `name{label="value",…} value`.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(sample).collect())
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The sum of all samples of this name that carry these labels.
    ///
    /// # Panics
    /// When the gateway has no metric of this name at all: a test that asks for it would pass or fail for the wrong reason.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        assert!(self.named(name).next().is_some(), "there is no metric {name}; there are {:?}", self.names());
        self.named(name)
            .filter(|sample| labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|has| has == value)))
            .map(|sample| sample.value)
            .sum()
    }

    /// The sum of all samples of this name where any label has this value. Counters that nothing has incremented yet may be absent.
    pub fn with_label_value(&self, name: &str, value: &str) -> f64 {
        self.named(name).filter(|sample| sample.labels.values().any(|has| has == value)).map(|sample| sample.value).sum()
    }

    pub fn has(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    /// How many samples have this name.
    pub fn count(&self, name: &str) -> usize {
        self.named(name).count()
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|sample| sample.name.as_str()).collect();
        names.dedup();
        names
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = match line.rfind('}') {
        Some(end) => (&line[..=end], &line[end + 1..]),
        None => line.split_once(' ').unwrap_or_else(|| panic!("not a sample: {line}")),
    };
    let value = value.split_whitespace().next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no value in: {line}"));
    let (name, labels) = match series.split_once('{') {
        None => (series, BTreeMap::new()),
        Some((name, rest)) => {
            let mut labels = BTreeMap::new();
            for pair in rest.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("not a label in: {line}"));
                labels.insert(label.trim().to_owned(), value.trim_end_matches('"').to_owned());
            }
            (name, labels)
        }
    };
    Sample { name: name.to_owned(), labels, value }
}
