//! "Did you mean": the nearest of some names, in words. Pure.

use crate::policy::did_you_mean;

/// `did you mean NAME?` for the nearest candidate, when one is near enough to be meant.
pub(crate) fn nearest<'a>(
    wanted: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<String> {
    did_you_mean(wanted, candidates).map(|meant| format!("did you mean {meant}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_name_and_another_word_does_not() {
        let names = ["web", "database", "cache"];

        assert_eq!(nearest("databse", names.into_iter()).unwrap(), "did you mean database?");
        assert_eq!(nearest("wbe", names.into_iter()).unwrap(), "did you mean web?");
        assert_eq!(nearest("queue", names.into_iter()), None);
    }
}
