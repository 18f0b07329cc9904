//! One run as one HTML page: leaders, faults, queues, finality and heights over virtual time, in inline SVG.
//! It needs no network and no script.

use std::fmt::Write as _;

use crate::{
    run::Report,
    timeline::{Sample, Timeline},
};

/// Width of the charts and of the labels left of them, pixels.
const WIDTH: f64 = 1_000.0;
const LABEL: f64 = 130.0;
/// Height of a row of bars and of a chart.
const ROW: f64 = 20.0;
const CHART: f64 = 120.0;
/// Faults that get a row each; the rest is counted.
const FAULT_ROWS_MAX: usize = 80;
/// Clusters that get a line each; more are drawn as their sum.
const LINES_MAX: usize = 8;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1160px;color:#1b2430}\
h2{font-size:1.05em;margin:1.6em 0 .3em}svg{background:#f7f8fa;border:1px solid #d8dde4}\
table{border-collapse:collapse}td{padding:.1em 1.2em .1em 0;vertical-align:top}\
.bad{background:#b3261e;color:#fff;padding:.6em 1em;border-radius:4px}\
.good{background:#1e7b43;color:#fff;padding:.6em 1em;border-radius:4px}\
text{font:11px system-ui,sans-serif;fill:#1b2430}.axis{stroke:#c3cad3}.now{stroke:#b3261e;stroke-width:2}";

const COLOURS: [&str; 8] = [
    "#2f6fb5", "#e08a1e", "#3c9d5d", "#a04fb0", "#c2483c", "#1f9aa8", "#8a6d3b", "#6a7280",
];

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Text for HTML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

struct Drawing<'a> {
    report: &'a Report,
    html: String,
}

impl Drawing<'_> {
    fn push(&mut self, text: &str) {
        self.html.push_str(text);
    }

    /// Where a virtual time stands.
    fn x(&self, at_ms: u64) -> f64 {
        let whole = self.report.virtual_ms.max(1) as f64;
        LABEL + (at_ms as f64 / whole).min(1.0) * WIDTH
    }

    /// A chart of `height` with seconds below it, and the moment of the violation.
    fn chart(&mut self, title: &str, height: f64, body: &str) {
        let (width, whole) = (LABEL + WIDTH + 10.0, height + 18.0);
        let mut svg = format!(
            "<h2>{}</h2><svg width=\"{width}\" height=\"{whole}\" viewBox=\"0 0 {width} {whole}\" role=\"img\">",
            escaped(title)
        );
        let secs = self.report.virtual_ms / 1_000;
        let step = (secs / 12).max(1);
        for second in (0..=secs).step_by(step as usize) {
            let x = self.x(second * 1_000);
            let below = height + 13.0;
            let _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{height}\"/><text x=\"{x:.1}\" y=\"{below}\">{second} s</text>"
            );
        }
        svg.push_str(body);
        if let Some(violation) = &self.report.violation {
            let x = self.x(violation.at_ms);
            let _ = write!(
                svg,
                "<line class=\"now\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{height}\"/>"
            );
        }
        svg.push_str("</svg>\n");
        self.push(&svg);
    }

    fn bar(&self, row: usize, from_ms: u64, until_ms: u64, colour: &str, text: &str) -> String {
        let (x, y) = (self.x(from_ms), row as f64 * ROW + 3.0);
        let width = (self.x(until_ms) - x).max(2.0);
        let text = escaped(text);
        let inside = if width > 46.0 { text.as_str() } else { "" };
        format!(
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\" fill-opacity=\"0.75\"><title>{text}</title></rect>\
             <text x=\"{:.1}\" y=\"{}\">{inside}</text>",
            ROW - 5.0,
            x + 3.0,
            y + 11.0
        )
    }

    fn label(row: usize, text: &str) -> String {
        format!(
            "<text x=\"4\" y=\"{}\">{}</text>",
            row as f64 * ROW + 14.0,
            escaped(text)
        )
    }

    fn leaders(&mut self, timeline: &Timeline) {
        let clusters = timeline.samples.first().map_or(0, |sample| sample.leaders.len());
        let mut body = String::new();
        for cluster in 0..clusters {
            body.push_str(&Self::label(cluster, &format!("c{}", cluster + 1)));
            for (from_ms, until_ms, leader) in spells(&timeline.samples, cluster, self.report.virtual_ms) {
                let (text, fill) = match &leader {
                    Some((name, term)) => (format!("{name} (term {term})"), colour(member(name))),
                    None => ("no leader".to_owned(), "#d8dde4"),
                };
                body.push_str(&self.bar(cluster, from_ms, until_ms, fill, &text));
            }
        }
        self.chart("Leaders", clusters.max(1) as f64 * ROW, &body);
    }

    fn faults(&mut self) {
        let faults = &self.report.faults;
        let mut rows: Vec<_> = faults.iter().collect();
        rows.sort_by_key(|fault| fault.from_ms);
        let mut body = String::new();
        for (row, fault) in rows.iter().take(FAULT_ROWS_MAX).enumerate() {
            body.push_str(&Self::label(row, fault.family.word()));
            let fill = colour(fault.family as usize);
            body.push_str(&self.bar(row, fault.from_ms, fault.until_ms, fill, &fault.what));
        }
        let shown = rows.len().min(FAULT_ROWS_MAX);
        let title = format!("Faults ({} of {} shown)", shown, rows.len());
        self.chart(&title, shown.max(1) as f64 * ROW, &body);
    }

    /// Lines over time, each with its name; all on one scale.
    fn lines(&mut self, title: &str, unit: &str, lines: &[(String, Vec<(u64, u64)>)]) {
        let most = lines
            .iter()
            .flat_map(|(_, points)| points.iter().map(|(_, value)| *value))
            .max();
        let most = most.unwrap_or(0).max(1);
        let mut body = format!(
            "<text x=\"4\" y=\"12\">{most} {}</text><text x=\"4\" y=\"{}\">0</text>",
            escaped(unit),
            CHART - 2.0
        );
        for (number, (name, points)) in lines.iter().enumerate() {
            let place = |(at_ms, value): &(u64, u64)| {
                let y = CHART - 4.0 - *value as f64 / most as f64 * (CHART - 12.0);
                format!("{:.1},{y:.1}", self.x(*at_ms))
            };
            let points: Vec<String> = points.iter().map(place).collect();
            let _ = write!(
                body,
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"><title>{}</title></polyline>\
                 <text x=\"4\" y=\"{}\" style=\"fill:{}\">{}</text>",
                colour(number),
                points.join(" "),
                escaped(name),
                28.0 + 12.0 * number as f64,
                colour(number),
                escaped(name)
            );
        }
        self.chart(title, CHART, &body);
    }

    fn of_clusters(&mut self, title: &str, unit: &str, timeline: &Timeline, value: impl Fn(&Sample) -> &[u64]) {
        let clusters = timeline.samples.first().map_or(0, |sample| value(sample).len());
        let points = |of: &dyn Fn(&[u64]) -> u64| -> Vec<(u64, u64)> {
            let samples = timeline.samples.iter();
            samples.map(|sample| (sample.at_ms, of(value(sample)))).collect()
        };
        let lines: Vec<_> = if clusters > LINES_MAX {
            vec![("all clusters".to_owned(), points(&|values| values.iter().sum()))]
        } else {
            let line = |cluster: usize| (format!("c{}", cluster + 1), points(&|values| values[cluster]));
            (0..clusters).map(line).collect()
        };
        self.lines(title, unit, &lines);
    }

    fn head(&mut self, commit: &str, again: &str) {
        let report = self.report;
        let population = report.plan.population;
        let verdict = match &report.violation {
            Some(violation) => format!("<p class=\"bad\">{}</p>", escaped(&violation.to_string())),
            None => "<p class=\"good\">No invariant broke.</p>".to_owned(),
        };
        let mut rows = String::new();
        let mut row = |name: &str, value: &str| {
            let _ = write!(rows, "<tr><td>{}</td><td>{}</td></tr>", escaped(name), escaped(value));
        };
        row("seed", &report.plan.seed.to_string());
        row("commit", commit);
        row("again with", again);
        row("trace hash", &report.trace_hash.to_hex());
        row(
            "fleet",
            &format!(
                "{} clusters of {} agents, {} validators",
                population.clusters, population.agents, population.validators
            ),
        );
        row(
            "virtual time",
            &format!("{}.{:03} s", report.virtual_ms / 1_000, report.virtual_ms % 1_000),
        );
        row(
            "tasks",
            &format!(
                "{} acknowledged, {} final, {} completions",
                report.tasks_acked, report.tasks_final, report.completed
            ),
        );
        for enemy in &report.enemies {
            row("enemy", &enemy.to_string());
        }
        let page = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Run of seed {}</title>\
             <style>{STYLE}</style></head><body><h1>Run of seed {}</h1>{verdict}<table>{rows}</table>\n",
            report.plan.seed, report.plan.seed
        );
        self.push(&page);
    }
}

/// The number of a member in its name, for its colour.
fn member(name: &str) -> usize {
    let number = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
    number.unwrap_or(0)
}

type Spell = (u64, u64, Option<(String, u64)>);

/// Times during which one leader led.
fn spells(samples: &[Sample], cluster: usize, ends_ms: u64) -> Vec<Spell> {
    let mut spells: Vec<Spell> = Vec::new();
    for sample in samples {
        let leader = sample.leaders.get(cluster).cloned().flatten();
        match spells.last_mut() {
            Some((_, until_ms, last)) if *last == leader => *until_ms = sample.at_ms,
            last => {
                if let Some((_, until_ms, _)) = last {
                    *until_ms = sample.at_ms;
                }
                spells.push((sample.at_ms, sample.at_ms, leader));
            }
        }
    }
    if let Some((_, until_ms, _)) = spells.last_mut() {
        *until_ms = ends_ms;
    }
    spells
}

/// The page of a run that was filmed. `again` is the command that shows the run again.
#[must_use]
pub fn page(report: &Report, commit: &str, again: &str) -> String {
    let mut drawing = Drawing {
        report,
        html: String::new(),
    };
    let timeline = &report.timeline;
    drawing.head(commit, again);
    drawing.leaders(timeline);
    drawing.faults();
    drawing.of_clusters("Queue depth: open tasks", "tasks", timeline, |sample| {
        &sample.open_tasks
    });
    drawing.of_clusters("Outboxes: bytes that are not final", "bytes", timeline, |sample| {
        &sample.outbox_bytes
    });
    let lag = timeline
        .samples
        .iter()
        .map(|sample| (sample.at_ms, sample.finality_lag_ms));
    drawing.lines(
        "Finality lag: age of the oldest acknowledged task that is not final everywhere",
        "ms",
        &[("lag".to_owned(), lag.collect())],
    );
    let low = timeline.samples.iter().map(|sample| (sample.at_ms, sample.heights.0.0));
    let high = timeline.samples.iter().map(|sample| (sample.at_ms, sample.heights.1.0));
    let heights = [
        ("lowest".to_owned(), low.collect()),
        ("highest".to_owned(), high.collect()),
    ];
    drawing.lines("Final heights of the honest validators", "blocks", &heights);
    if report.violation.is_some() {
        drawing.push("<h2>Where everybody stood</h2><table>");
        for line in &report.processes {
            let line = format!("<tr><td>{}</td></tr>", escaped(line));
            drawing.push(&line);
        }
        drawing.push("</table>");
    }
    drawing.push("</body></html>\n");
    drawing.html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, leader: Option<(&str, u64)>) -> Sample {
        Sample {
            at_ms,
            leaders: vec![leader.map(|(name, term)| (name.to_owned(), term))],
            open_tasks: vec![1],
            outbox_bytes: vec![0],
            finality_lag_ms: 0,
            heights: Default::default(),
        }
    }

    #[test]
    fn leader_spells_follow_each_other_without_a_gap() {
        let samples = [
            sample(0, None),
            sample(1_000, Some(("c1-1", 1))),
            sample(2_000, Some(("c1-1", 1))),
            sample(3_000, Some(("c1-2", 2))),
        ];
        let one = Some(("c1-1".to_owned(), 1));
        let two = Some(("c1-2".to_owned(), 2));
        assert_eq!(
            spells(&samples, 0, 9_000),
            [(0, 1_000, None), (1_000, 3_000, one), (3_000, 9_000, two)]
        );
    }

    #[test]
    fn text_of_a_run_cannot_become_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
