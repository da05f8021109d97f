//! A row that many documents share: in memory once, and written as JSON once.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

/// A value that is the same wherever it is shared. Cloning shares; as JSON it is the value.
#[derive(Clone, Debug)]
pub struct Shared<T>(Arc<Inner<T>>);

#[derive(Clone, Debug)]
struct Inner<T> {
    value: T,
    json: Option<Box<RawValue>>,
}

impl<T> Shared<T> {
    /// A value that few documents have: it is written for each.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Inner { value, json: None }))
    }
}

impl<T: Clone> Shared<T> {
    /// The value, to change it here and nowhere else.
    pub fn make_mut(&mut self) -> &mut T {
        let inner = Arc::make_mut(&mut self.0);
        inner.json = None;
        &mut inner.value
    }
}

impl<T: Serialize> Shared<T> {
    /// A value that is written here and now, for all documents to come.
    pub fn written(value: T) -> Self {
        // What cannot be written is said by whoever writes a document of it.
        let json = to_raw_value(&value).ok();
        Self(Arc::new(Inner { value, json }))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.json {
            Some(json) => json.serialize(serializer),
            None => self.0.value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_json_it_is_the_value_whether_it_is_written_already_or_not() {
        let value = vec!["a \"b\" \n".to_owned(), "ü".to_owned()];
        let plain = serde_json::to_string(&value).unwrap();

        for shared in [Shared::new(value.clone()), Shared::written(value.clone())] {
            assert_eq!(serde_json::to_string(&shared).unwrap(), plain);
            assert_eq!(serde_json::to_value(&shared).unwrap(), serde_json::json!(value));
            assert_eq!(serde_json::from_str::<Shared<Vec<String>>>(&plain).unwrap(), shared);
            assert_eq!(*shared, value);

            let mut other = shared.clone();
            other.make_mut().push("b".to_owned());
            assert_eq!(*shared, value, "what others share stays");
            assert_eq!(serde_json::to_value(&other).unwrap(), serde_json::json!(*other));
        }
    }
}
