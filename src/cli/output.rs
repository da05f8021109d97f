//! The only place that prints: data on stdout, everything else on stderr.
//!
//! Nothing is coloured, so `NO_COLOR` is honoured by construction. Control characters are escaped
//! before they reach a terminal, because names and reasons come from other machines. A reader that
//! goes away (`ovctl … | head`) ends the output, not the program.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::args::Format;
use crate::api::{Problem, ProblemCode};
use crate::types::Timestamp;

/// The contract that JSON output follows.
const API_VERSION: &str = "ovmesh/v1";

/// Where a command shows what it found.
pub struct Output {
    format: Format,
    now: Timestamp,
    data: Box<dyn Write>,
    notes: Box<dyn Write>,
    /// The first error of `data`; what follows is not written.
    failed: Option<io::Error>,
}

impl Output {
    /// Writes to this process's stdout and stderr.
    #[must_use]
    pub fn standard(format: Format) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::new(
            format,
            Timestamp(since.as_secs()),
            Box::new(io::stdout()),
            Box::new(io::stderr()),
        )
    }

    /// Writes to `data` and `notes`; relative times are told from `now`.
    #[must_use]
    pub fn new(
        format: Format,
        now: Timestamp,
        data: Box<dyn Write>,
        notes: Box<dyn Write>,
    ) -> Self {
        Self { format, now, data, notes, failed: None }
    }

    /// How results are to be shown.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The time that relative times are told from.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Writes one line of data.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.write(&format!("{}\n", printable(text.as_ref())));
    }

    /// Writes data as it is: for what a program reads, such as a completion script.
    pub fn raw(&mut self, text: &str) {
        self.write(text);
    }

    /// Writes a JSON document, indented, and says which contract it follows.
    pub fn json(&mut self, value: &Value) {
        let mut value = value.clone();
        // One thing alone comes without it from the server.
        if let Value::Object(fields) = &mut value {
            fields.entry("apiVersion").or_insert_with(|| API_VERSION.into());
        }
        // A Value always serialises; `{:#}` is its indented form.
        self.write(&format!("{value:#}\n"));
    }

    /// Writes aligned columns under their headings; nothing for a table without rows.
    pub fn table(&mut self, table: &Table) {
        for line in table.lines() {
            self.line(line);
        }
    }

    /// Writes one line for people to stderr.
    pub fn note(&mut self, text: impl AsRef<str>) {
        // Nobody is left to be told when stderr is gone.
        let _ = writeln!(self.notes, "{}", printable(text.as_ref()));
    }

    /// Writes a problem to stderr: sentences, or JSON under `-o json`.
    pub fn problem(&mut self, problem: &Problem) {
        if self.format == Format::Json {
            let body = serde_json::json!({ "apiVersion": API_VERSION, "error": problem });
            let _ = writeln!(self.notes, "{body:#}");
            return;
        }
        for (index, line) in problem.to_string().lines().enumerate() {
            let lead = if index == 0 { "error: " } else { "" };
            self.note(format!("{lead}{line}"));
        }
    }

    /// Shows at once what was written; ends a command whose reader went away.
    ///
    /// # Errors
    ///
    /// When data could not be written.
    pub fn flush(&mut self) -> Result<(), Problem> {
        if self.failed.is_none() {
            self.failed = self.data.flush().err();
        }
        match &self.failed {
            None => Ok(()),
            Some(error) => {
                Err(Problem::new(ProblemCode::Failed, "cannot write the output")
                    .why(error.to_string()))
            }
        }
    }

    /// Ends the output.
    ///
    /// # Errors
    ///
    /// When data could not be written, unless only the reader went away.
    pub fn finish(&mut self) -> Result<(), Problem> {
        if self.failed.is_none() {
            self.failed = self.data.flush().err();
        }
        match self.failed.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Problem::new(ProblemCode::Failed, "cannot write the output")
                    .why(error.to_string()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = self.data.write_all(text.as_bytes()).err();
        }
    }
}

/// The text with control characters escaped, the line break included.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Bidirectional overrides can make a name look like another one.
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Columns under headings, each as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self { headings: headings.iter().map(|text| printable(text)).collect(), rows: Vec::new() }
    }

    /// Appends a row; an empty cell is shown as `–`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter();
        self.rows.push(
            cells
                .map(|cell| if cell.is_empty() { "–".to_owned() } else { printable(&cell) })
                .collect(),
        );
    }

    /// Whether it has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Headings and rows as lines; none for a table without rows.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let headings = &self.headings;
        let mut widths = vec![0; headings.len()];
        for row in std::iter::once(headings).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        std::iter::once(headings).chain(&self.rows).map(|row| aligned(row, &widths)).collect()
    }
}

/// One row with its cells padded to `widths`, two spaces between, none at the end.
fn aligned(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> =
        row.iter().zip(widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
    cells.join("  ").trim_end().to_owned()
}

/// Things joined by commas.
pub(crate) fn joined<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(",")
}

/// `3 rules`, `1 rule`.
pub(crate) fn counted(count: u64, one: &str) -> String {
    match (count, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {one}s"),
    }
}

/// How long ago, or in how long: `now`, `3m ago`, `in 2d`. Rounded down to one unit.
pub(crate) fn relative(time: Timestamp, now: Timestamp) -> String {
    let seconds = time.0.abs_diff(now.0);
    let span = span(seconds);
    match time.0.cmp(&now.0) {
        // The clocks of two hosts differ by a few seconds.
        std::cmp::Ordering::Equal => "now".to_owned(),
        std::cmp::Ordering::Less if seconds < 5 => "now".to_owned(),
        std::cmp::Ordering::Less => format!("{span} ago"),
        std::cmp::Ordering::Greater => format!("in {span}"),
    }
}

/// A number of seconds in its largest unit: `59s`, `3m`, `2d`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        172_800.. => format!("{}d", seconds / 86_400),
    }
}

/// Microseconds for people: `180 µs`, `4.2 ms`.
pub(crate) fn micros(micros: u64) -> String {
    if micros < 1_000 {
        return format!("{micros} µs");
    }
    format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// A sink that a test can read.
    #[derive(Clone, Default)]
    pub(crate) struct Page(Rc<RefCell<Vec<u8>>>);

    impl Page {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.borrow().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An output whose data and notes can be read; it is 1970-01-12.
    pub(crate) fn pages(format: Format) -> (Output, Page, Page) {
        let (data, notes) = (Page::default(), Page::default());
        let output = Output::new(
            format,
            Timestamp(1_000_000),
            Box::new(data.clone()),
            Box::new(notes.clone()),
        );
        (output, data, notes)
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn columns_align_by_characters_not_bytes() {
        let mut table = Table::new(&["NAME", "SEEN"]);
        table.row(["é→é".to_owned(), "now".to_owned()]);
        table.row([String::new(), "3m ago".to_owned()]);

        assert_eq!(table.lines(), ["NAME  SEEN", "é→é   now", "–     3m ago"]);
        assert!(Table::new(&["NAME"]).lines().is_empty());
    }

    #[test]
    fn a_hostile_name_cannot_write_to_the_terminal() {
        let (mut output, data, notes) = pages(Format::Table);
        output.line("a\x1b[31m\nb\u{202e}");
        output.note("c\x07");

        assert_eq!(data.text(), "a\\u{1b}[31m\\nb\\u{202e}\n");
        assert_eq!(notes.text(), "c\\u{7}\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is() {
        for (kind, ok) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let mut output = Output::new(
                Format::Table,
                Timestamp(0),
                Box::new(Broken(kind)),
                Box::new(Page::default()),
            );
            output.line("a");
            output.line("b");
            assert_eq!(output.finish().is_ok(), ok, "{kind}");
        }
    }

    #[test]
    fn problems_are_three_lines_or_json() {
        let problem = Problem::new(ProblemCode::NotFound, "no entity `wep`")
            .why("it is not there")
            .fix("did you mean web?");
        let (mut output, data, notes) = pages(Format::Table);
        output.problem(&problem);
        assert_eq!(
            notes.text(),
            "error: no entity `wep`\n  why: it is not there\n  do:  did you mean web?\n"
        );
        assert_eq!(data.text(), "");

        let (mut output, _, notes) = pages(Format::Json);
        output.problem(&problem);
        let value: Value = serde_json::from_str(&notes.text()).unwrap();
        assert_eq!(value["error"]["code"], "not_found");
        assert_eq!(value["apiVersion"], "ovmesh/v1");
    }

    #[test]
    fn times_and_counts_read_well() {
        let at = |seconds| relative(Timestamp(seconds), Timestamp(1_000_000));
        assert_eq!(at(999_998), "now");
        assert_eq!(at(999_940), "60s ago");
        assert_eq!(at(1_000_000 + 3 * 86_400), "in 3d");
        assert_eq!(counted(1, "rule"), "1 rule");
        assert_eq!(counted(0, "entity"), "0 entities");
        assert_eq!(micros(4_250), "4.2 ms");
        assert_eq!(micros(180), "180 µs");
    }
}
