//! The charts of the last hour: drawn as SVG from the samples of this process, each with a sentence and a table of the same values.

use maud::{Markup, html};

use super::text::number;
use super::view::View;
use crate::domain::timestamp::Timestamp;
use crate::sync::health::ago;
use crate::sync::heartbeat::{SAMPLE_SECONDS, SAMPLES, Sample};

/// Size of a drawing in its own units.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;

/// Number of rows of a table, each of five minutes.
const ROWS: usize = 12;

/// One line of a chart: a value for each half minute of the last hour, the oldest first. `None` where it is unknown.
struct Line {
    name: &'static str,
    class: &'static str,
    values: Vec<Option<i64>>,
}

/// A chart.
struct Chart {
    id: &'static str,
    title: &'static str,
    /// The smallest upper end of the axis.
    least_top: i64,
    format: fn(i64) -> String,
    lines: Vec<Line>,
}

/// Returns the charts.
pub(super) fn charts(view: &View) -> Markup {
    let grid = Grid::new(&view.samples, view.now);
    let per_minute = |name, class, read: fn(&Sample) -> u64| Line { name, class, values: grid.per_minute(read) };
    let charts = [
        Chart {
            id: "chart-lag",
            title: "Lag",
            least_top: 10,
            format: ago,
            lines: vec![Line { name: "lag", class: "a", values: grid.values(|sample| sample.lag_seconds) }],
        },
        Chart {
            id: "chart-events",
            title: "Events per minute",
            least_top: 10,
            format: number,
            lines: vec![
                per_minute("webhooks", "a", |sample| sample.counted.webhooks),
                per_minute("polling", "b", |sample| sample.counted.polled),
            ],
        },
        Chart {
            id: "chart-requests",
            title: "Requests per minute",
            least_top: 10,
            format: number,
            lines: vec![
                per_minute("answered", "a", |sample| sample.counted.requests),
                per_minute("failed (5xx)", "c", |sample| sample.counted.failures),
            ],
        },
    ];
    html! {
        div.columns.three { @for chart in &charts { (figure(chart)) } }
        p.muted { "Events and requests are those of this process. A point is half a minute." }
    }
}

/// The samples by half minute.
struct Grid<'a>(Vec<Option<&'a Sample>>);

impl<'a> Grid<'a> {
    fn new(samples: &'a [Sample], now: Timestamp) -> Self {
        let slot = |at: Timestamp| at.unix_seconds().div_euclid(SAMPLE_SECONDS);
        let mut grid = vec![None; SAMPLES];
        for sample in samples {
            let age = usize::try_from(slot(now) - slot(sample.at)).unwrap_or(usize::MAX);
            if let Some(place) = SAMPLES.checked_sub(age.saturating_add(1)).and_then(|index| grid.get_mut(index)) {
                *place = Some(sample);
            }
        }
        Self(grid)
    }

    fn values(&self, read: fn(&Sample) -> Option<i64>) -> Vec<Option<i64>> {
        self.0.iter().map(|sample| sample.and_then(read)).collect()
    }

    /// Returns the increase of a counter from each sample to the next one, per minute.
    fn per_minute(&self, read: fn(&Sample) -> u64) -> Vec<Option<i64>> {
        let increase = |pair: &[Option<&Sample>]| {
            let [Some(earlier), Some(later)] = pair else { return None };
            let seconds = (later.at.unix_seconds() - earlier.at.unix_seconds()).max(1);
            let events = i64::try_from(read(later).saturating_sub(read(earlier))).unwrap_or(i64::MAX);
            Some(events.saturating_mul(60).saturating_add(seconds / 2) / seconds)
        };
        std::iter::once(None).chain(self.0.windows(2).map(increase)).collect()
    }
}

fn figure(chart: &Chart) -> Markup {
    let top = top(chart);
    let (title, description) = (format!("{}-title", chart.id), format!("{}-description", chart.id));
    let is_empty = chart.lines.iter().all(|line| line.values.iter().all(Option::is_none));
    html! {
        figure {
            h3 id=(title) { (chart.title) }
            p.legend id=(description) {
                @for line in &chart.lines {
                    span.key { i class=(line.class) aria-hidden="true" {} (sentence(chart, line)) }
                }
            }
            div.plot {
                span.top aria-hidden="true" { ((chart.format)(top)) }
                svg role="img" aria-labelledby=(title) aria-describedby=(description)
                    viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
                    title { (chart.title) " of the last hour" }
                    @for y in [0.5, HEIGHT - 0.5] { line.grid x1="0" x2=(WIDTH) y1=(y) y2=(y) {} }
                    // The text of an empty chart is in the middle.
                    @if !is_empty { line.grid x1="0" x2=(WIDTH) y1=(HEIGHT / 2.0) y2=(HEIGHT / 2.0) {} }
                    @for line in &chart.lines {
                        path class={ "area " (line.class) } d=(path(&line.values, top, true)) {}
                        path class={ "line " (line.class) } d=(path(&line.values, top, false)) {}
                    }
                }
                @if is_empty { span.empty { "No samples yet" } }
            }
            p.axis aria-hidden="true" { span { "60 min ago" } span { "30" } span { "now" } }
            (details(chart))
        }
    }
}

/// Returns the upper end of the axis: 1, 2 or 5 times a power of ten.
fn top(chart: &Chart) -> i64 {
    let largest = chart.lines.iter().flat_map(|line| line.values.iter().flatten()).max().copied().unwrap_or_default();
    let steps = (0..18).flat_map(|power| [1, 2, 5].map(|step| step * 10_i64.pow(power)));
    steps.into_iter().find(|step| *step >= largest.max(chart.least_top)).unwrap_or(i64::MAX)
}

fn sentence(chart: &Chart, line: &Line) -> String {
    let known = line.values.iter().flatten();
    match (line.values.iter().rev().flatten().next(), known.max()) {
        (Some(last), Some(most)) => {
            format!("{}: now {}, at most {}", line.name, (chart.format)(*last), (chart.format)(*most))
        }
        _ => format!("{}: unknown", line.name),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a drawing has no more than a thousand points")]
fn path(values: &[Option<i64>], top: i64, is_area: bool) -> String {
    let step = WIDTH / (values.len().saturating_sub(1).max(1)) as f64;
    let mut path = String::new();
    let mut run: Vec<(f64, f64)> = Vec::new();
    let mut end = |run: &mut Vec<(f64, f64)>| {
        if let (Some((first, _)), Some((last, _))) = (run.first().copied(), run.last().copied()) {
            let points: Vec<String> = run.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let line = points.join("L");
            // A single sample is drawn as a short line.
            let line = if run.len() == 1 { format!("{line}h1") } else { line };
            path +=
                &if is_area { format!("M{first:.1} {HEIGHT}L{line}L{last:.1} {HEIGHT}Z") } else { format!("M{line}") };
        }
        run.clear();
    };
    for (index, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                let part = (*value as f64 / top.max(1) as f64).clamp(0.0, 1.0);
                run.push((index as f64 * step, 1.0 + (1.0 - part) * (HEIGHT - 2.0)));
            }
            None => end(&mut run),
        }
    }
    end(&mut run);
    path
}

/// Returns the values as a table, the largest of each five minutes.
fn details(chart: &Chart) -> Markup {
    let per_row = SAMPLES.saturating_sub(1) / ROWS;
    let largest = |line: &Line, row: usize| {
        let values = line.values.iter().skip(1 + row * per_row).take(per_row);
        values.flatten().max().map_or_else(|| "–".to_owned(), |value| (chart.format)(*value))
    };
    html! {
        details id={ (chart.id) "-table" } {
            summary id={ (chart.id) "-summary" } { "As a table" span.hidden { ": " (chart.title) } }
            table.plain {
                caption { "The largest value of each five minutes" }
                thead { tr { th scope="col" { "Minutes ago" } @for line in &chart.lines { th scope="col" { (line.name) } } } }
                tbody {
                    @for row in 0..ROWS {
                        tr {
                            th scope="row" { ((ROWS - row) * 5) "–" ((ROWS - row - 1) * 5) }
                            @for line in &chart.lines { td { (largest(line, row)) } }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counted;

    fn sample(at: i64, webhooks: u64) -> Sample {
        let counted = Counted { webhooks, ..Counted::default() };
        Sample { at: Timestamp::from_unix_micros(at * 1_000_000), lag_seconds: Some(at), counted }
    }

    #[test]
    fn a_counter_becomes_a_rate_and_a_gap_stays_a_gap() {
        let samples = [sample(30, 10), sample(60, 25), sample(120, 25)];
        let grid = Grid::new(&samples, Timestamp::from_unix_micros(149_000_000));
        let rates = grid.per_minute(|sample| sample.counted.webhooks);
        assert_eq!(rates[SAMPLES - 4..], [None, Some(30), None, None]);
        let lags = grid.values(|sample| sample.lag_seconds);
        assert_eq!(lags[SAMPLES - 4..], [Some(30), Some(60), None, Some(120)]);
    }

    #[test]
    fn a_path_ends_at_a_gap_and_stays_inside_the_drawing() {
        let path = path(&[Some(0), Some(10), None, Some(50)], 10, false);
        assert_eq!(path, "M0.0 119.0L200.0 1.0M600.0 1.0h1");
    }
}
