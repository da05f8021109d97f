//! "Did you mean": the known name that a typing mistake was most likely meant to be.

/// Longest text that is compared, in characters: the longest `namespace/name`.
const COMPARED_MAX: usize = 127;

/// The name among `known` that `typed` was probably meant to be: the same name in another
/// namespace, else the one with the fewest typing mistakes, at most one for each three characters
/// (and one for shorter names). The first of equals wins.
pub fn did_you_mean<S: AsRef<str>>(typed: &str, known: impl IntoIterator<Item = S>) -> Option<S> {
    let wanted: Vec<char> = typed.chars().take(COMPARED_MAX + 1).collect();
    if wanted.is_empty() || wanted.len() > COMPARED_MAX {
        return None;
    }
    let mistakes_max = (wanted.len() / 3).max(1);
    known
        .into_iter()
        .filter_map(|name| {
            let mistakes = if last_part(name.as_ref()) == last_part(typed) {
                0
            } else {
                let other: Vec<char> = name.as_ref().chars().take(COMPARED_MAX).collect();
                mistakes_between(&wanted, &other)
            };
            (mistakes <= mistakes_max).then_some((mistakes, name))
        })
        .min_by_key(|(mistakes, _)| *mistakes)
        .map(|(_, name)| name)
}

/// What stands behind the last `/`.
fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// How many characters were forgotten, added, mistaken, or swapped with their neighbour (the optimal
/// string alignment distance), with three rows of memory.
fn mistakes_between(left: &[char], right: &[char]) -> usize {
    let mut before_last: Vec<usize> = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let mistaken = last[j] + usize::from(l != r);
            let mut best = mistaken.min(last[j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && *l == right[j - 1] && left[i - 1] == *r;
            if swapped {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mistake_in_a_short_name_is_forgiven() {
        let known = ["db", "frontend", "web"];

        for (typed, meant) in [
            ("wbe", Some("web")),
            ("we", Some("web")),
            ("webb", Some("web")),
            ("frontned", Some("frontend")),
            ("fontend", Some("frontend")),
            ("dbb", Some("db")),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(typed, known), meant, "{typed}");
        }
    }

    #[test]
    fn the_same_name_in_another_namespace_comes_first() {
        assert_eq!(did_you_mean("web", ["wob", "shop/web"]), Some("shop/web"));
        assert_eq!(did_you_mean("shop/web", ["shop/wob", "web"]), Some("web"));
    }

    #[test]
    fn an_endless_name_is_not_compared() {
        assert_eq!(did_you_mean(&"x".repeat(1 << 20), ["x"]), None);
    }
}
