//! Bytes as hexadecimal digits.

use anyhow::{Context, Result, bail};

/// Reads hexadecimal digits; white space between them is passed over.
pub(crate) fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<u32> = hex
        .chars()
        .filter(|digit| !digit.is_whitespace())
        .map(|digit| digit.to_digit(16).with_context(|| format!("`{digit}` is no hex digit")))
        .collect::<Result<_>>()?;
    if !digits.len().is_multiple_of(2) {
        bail!("an odd number of hex digits");
    }
    digits.chunks(2).map(|pair| Ok(u8::try_from(pair[0] * 16 + pair[1])?)).collect()
}

/// The words of a command line, or, for `@` and the name of a file, what is in the file.
pub(crate) fn text(words: &str) -> Result<String> {
    match words.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")),
        None => Ok(words.to_owned()),
    }
}

/// As [`text`], each line as bytes; an empty line is no bytes.
pub(crate) fn lines(words: &str) -> Result<Vec<Vec<u8>>> {
    text(words)?.lines().map(bytes).collect()
}
