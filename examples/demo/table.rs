//! What the demo saw, as aligned columns.

/// One ordered pair.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Verdict and path that Table I asks for.
    pub(crate) expected: String,
    /// Verdict and path that were seen.
    pub(crate) seen: String,
    /// Packets that the SaP forwarded meanwhile.
    pub(crate) carried: u64,
    /// The median time of a request; none when none was answered.
    pub(crate) median_ms: Option<f64>,
    /// Why it was denied; empty when it was not.
    pub(crate) why: String,
    /// What else is wrong; empty when nothing is.
    pub(crate) problem: String,
}

impl Row {
    /// Whether anything is not as it should be.
    pub(crate) fn differs(&self) -> bool {
        self.expected != self.seen || !self.problem.is_empty()
    }
}

/// Prints all of them.
pub(crate) fn print(rows: &[Row]) {
    let head = ["FROM", "TO", "EXPECTED", "SEEN", "MEDIAN", "BY SAP-1", ""].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let verdict = match (row.differs(), row.problem.is_empty()) {
            (false, _) => "ok".to_owned(),
            (true, true) => "DIFFERS".to_owned(),
            (true, false) => format!("DIFFERS: {}", row.problem),
        };
        lines.push([
            row.from.clone(),
            row.to.clone(),
            row.expected.clone(),
            row.seen.clone(),
            row.median_ms.map_or("-".to_owned(), |median| format!("{median:.2} ms")),
            format!("{} packets", row.carried),
            verdict,
        ]);
    }
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    for line in &lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    println!();
}
