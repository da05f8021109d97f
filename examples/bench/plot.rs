//! The medians as bars, in one SVG that needs nothing else.

use std::fmt::Write as _;

use crate::report::Report;
use crate::sites::Way;

/// The panels: the beginning of a figure's name, the title, digits.
const PANELS: &[(&str, &str, usize)] = &[
    ("TCP 1 stream", "TCP, one stream, Gbit/s (more is better)", 2),
    ("UDP 64 B", "64-byte UDP at 1% loss, thousand a second (more is better)", 0),
    ("RTT p50 pinned", "round trip, median, one CPU, microseconds (less is better)", 1),
    ("CPU of our programs", "CPU of our programs, seconds a gigabyte (less is better)", 2),
];

const WIDTH: f64 = 760.0;
const LABELS: f64 = 300.0;
const NUMBERS: f64 = 70.0;
const BAR: f64 = 16.0;
const STEP: f64 = 22.0;
const HEAD: f64 = 34.0;
const MARGIN: f64 = 12.0;

/// Draws the report.
pub(crate) fn svg(report: &Report) -> String {
    let (mut body, mut y) = (String::new(), MARGIN);
    for &(figure, title, digits) in PANELS {
        let rows: Vec<_> =
            report.ways.iter().filter_map(|way| Some((way.way, way.median(figure)?))).collect();
        let longest = rows.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        if longest <= 0.0 {
            continue;
        }
        text(&mut body, MARGIN, y + 18.0, "start", "bold", title);
        y += HEAD;
        for (way, value) in rows {
            let length = (WIDTH - LABELS - NUMBERS - MARGIN) * value / longest;
            text(&mut body, LABELS - 8.0, y + 12.5, "end", "normal", way.title());
            let _ = writeln!(
                body,
                r#"<rect x="{LABELS}" y="{y}" width="{length:.1}" height="{BAR}" fill="{}"/>"#,
                colour(way)
            );
            let shown = format!("{value:.digits$}");
            text(&mut body, LABELS + length + 6.0, y + 12.5, "start", "normal", &shown);
            y += STEP;
        }
        y += MARGIN;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" \
         height=\"{y}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        body,
        r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-weight="{weight}" fill="#222222">{words}</text>"##
    );
}

fn colour(way: Way) -> &'static str {
    match way {
        Way::Raw => "#9aa0a6",
        Way::Vxlan => "#7a8ba8",
        Way::Naive => "#d9a441",
        Way::Direct => "#5aa469",
        Way::Sap => "#2f6f4f",
        Way::Before => "#9ab8a8",
    }
}
