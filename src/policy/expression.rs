//! Label selectors as Kubernetes writes them: `matchLabels` and `matchExpressions`, all ANDed.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{Cursor, shown};
use crate::api::Problem;
use crate::types::Label;

/// What must hold of labels; empty holds of everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Each must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The key is there, with one of these values.
    In(String, BTreeSet<String>),
    /// The key is not there, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The key is there.
    Exists(String),
    /// The key is not there.
    DoesNotExist(String),
}

impl LabelSelector {
    /// Whether all requirements hold of these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeSet<Label>) -> bool {
        let value_of =
            |key: &str| labels.iter().find(|label| label.key == key).map(|label| &label.value);
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => value_of(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => value_of(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => value_of(key).is_some(),
            Requirement::DoesNotExist(key) => value_of(key).is_none(),
        })
    }

    /// Reads `{matchLabels, matchExpressions}` and refuses what Kubernetes refuses.
    pub(super) fn read(from: &Cursor<'_>) -> Result<Self, Problem> {
        let fields = from.fields(&["matchLabels", "matchExpressions"])?;
        let mut requirements = Vec::new();
        if let Some(labels) = fields.field("matchLabels") {
            for label in read_labels(&labels)? {
                requirements.push(Requirement::In(label.key, BTreeSet::from([label.value])));
            }
        }
        for expression in fields.items("matchExpressions")? {
            requirements.push(read_expression(&expression)?);
        }
        Ok(Self { requirements })
    }
}

fn read_expression(from: &Cursor<'_>) -> Result<Requirement, Problem> {
    let fields = from.fields(&["key", "operator", "values"])?;
    let key = fields.needed("key")?;
    let name = key.text()?.to_owned();
    if !is_label(&name, "") {
        return Err(key.wrong(format!("`{}` is no label key", shown(&name))));
    }
    let mut values = BTreeSet::new();
    for value in fields.items("values")? {
        let text = value.text()?;
        if !is_label("k", text) {
            return Err(value.wrong(format!("`{}` is no label value", shown(text))));
        }
        values.insert(text.to_owned());
    }
    let operator = fields.needed("operator")?;
    let word = operator.text()?;
    let counted = |wanted: bool| {
        if values.is_empty() != wanted {
            Ok(())
        } else if wanted {
            Err(from.wrong(format!("{word} needs `values`")))
        } else {
            Err(from.wrong(format!("{word} takes no `values`")))
        }
    };
    match word {
        "In" => counted(true).map(|()| Requirement::In(name, values.clone())),
        "NotIn" => counted(true).map(|()| Requirement::NotIn(name, values.clone())),
        "Exists" => counted(false).map(|()| Requirement::Exists(name)),
        "DoesNotExist" => counted(false).map(|()| Requirement::DoesNotExist(name)),
        other => Err(operator.wrong(format!(
            "`{}` is no operator: In, NotIn, Exists or DoesNotExist",
            shown(other)
        ))),
    }
}

/// Reads a mapping of label keys to values.
pub(super) fn read_labels(from: &Cursor<'_>) -> Result<BTreeSet<Label>, Problem> {
    let mut labels = BTreeMap::new();
    for (key, value) in from.any_fields()?.each() {
        let text = value.text().map_err(|problem| {
            problem.fix("the value of a label is a text: put numbers, true and false in quotes")
        })?;
        let label: Label = format!("{key}={text}")
            .parse()
            .map_err(|e: crate::types::ParseNameError| value.wrong(e.to_string()))?;
        if label.key != key {
            return Err(value.wrong(format!("`{}` is no label key", shown(key))));
        }
        labels.insert(label.key.clone(), label);
    }
    Ok(labels.into_values().collect())
}

/// Whether the two make a label.
fn is_label(key: &str, value: &str) -> bool {
    let parsed: Result<Label, _> = format!("{key}={value}").parse();
    parsed.is_ok_and(|label| label.key == key && label.value == value)
}
