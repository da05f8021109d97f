//! The command line of the three programs: arguments, and for `ovctl` one file per noun that asks
//! the server and shows its answer. Only `output` prints; nothing here decides policy.

pub mod args;
pub mod audit;
pub mod backup;
pub mod client;
pub mod completion;
mod credential;
pub mod denied;
pub mod dns;
pub mod doctor;
mod enforcement;
pub mod entity;
pub mod flow;
pub mod group;
pub mod guard;
pub mod key;
pub mod kubernetes;
pub mod local_why;
pub mod node_status;
pub mod output;
pub mod overlay;
pub mod path;
pub mod ping;
pub mod policy;
mod policy_answers;
mod policy_file;
pub mod policy_offline;
mod rule_words;
pub mod sap;
pub mod status;
pub mod token;
pub mod why;

/// How a command ended that did what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// Committed, and a node that must enforce it has not said so yet.
    NotYetEnforced,
    /// The check asked for does not hold.
    NotSo,
    /// The verdict is deny.
    Denied,
    /// Something was found: by a test, a lint or a comparison.
    Findings,
}

impl Outcome {
    /// The exit code (design section 11).
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NotYetEnforced | Self::NotSo => 1,
            Self::Denied => 4,
            Self::Findings => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;
    use crate::api::ProblemCode;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let outcomes = [
            Outcome::Done,
            Outcome::NotYetEnforced,
            Outcome::NotSo,
            Outcome::Denied,
            Outcome::Findings,
        ];
        assert_eq!(outcomes.map(Outcome::exit_code), [0, 1, 1, 4, 8]);

        let problems = [
            (ProblemCode::Failed, 1),
            (ProblemCode::Usage, 2),
            (ProblemCode::NotFound, 3),
            (ProblemCode::Conflict, 5),
            (ProblemCode::Unreachable, 6),
            (ProblemCode::Unauthorized, 7),
        ];
        for (code, exit) in problems {
            assert_eq!(code.exit_code(), exit);
        }
    }
}
