//! "Did you mean": the nearest of some names. Pure.

/// `did you mean NAME?` for the nearest candidate, when one is near enough to be meant.
pub(crate) fn nearest<'a>(
    wanted: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<String> {
    // One slip in four letters; more is another word.
    let limit = (wanted.chars().count() / 4).clamp(1, 3);
    candidates
        .map(|candidate| (distance(wanted, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| format!("did you mean {candidate}?"))
}

/// How many letters to insert, drop or change to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let changed = diagonal + usize::from(from != *to);
            diagonal = *above;
            left = changed.min(left + 1).min(*above + 1);
            *above = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_name_and_another_word_does_not() {
        let names = ["web", "database", "cache"];

        assert_eq!(nearest("databse", names.into_iter()).unwrap(), "did you mean database?");
        assert_eq!(nearest("wep", names.into_iter()).unwrap(), "did you mean web?");
        assert_eq!(nearest("queue", names.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
