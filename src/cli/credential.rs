//! What `ovctl` needs to speak to a server over HTTPS: a URL, the pin of the server's key, a secret.
//!
//! An admin or viewer token is `ova1.SECRET.PIN`, both 64 hexadecimal digits: the secret goes to
//! the server, the pin stays here. A token without pin is taken with a URL that carries it:
//! `https://HOST:PORT#sha256=PIN`.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

use crate::api::{Problem, ProblemCode};
use crate::types::Secret;

/// How every admin and viewer token starts.
const PREFIX: &str = "ova1.";

/// Longest token file that is read, in bytes.
const FILE_MAX: u64 = 4096;

/// The text behind `Authorization: Bearer`; zeroed when dropped.
#[derive(ZeroizeOnDrop)]
pub(crate) struct Bearer(String);

impl Bearer {
    /// The text; keep it off logs and errors.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// Everything to speak to one server.
pub(crate) struct Credential {
    /// `https://HOST:PORT`, without anything behind it.
    pub(crate) url: String,
    /// SHA-256 of the server key's SubjectPublicKeyInfo.
    pub(crate) pin: [u8; 32],
    /// What entitles.
    pub(crate) bearer: Bearer,
    /// What the user should know about the token file.
    pub(crate) warning: Option<String>,
}

/// Reads the token in `token_file` (`-` is stdin) for the server at `server`.
///
/// # Errors
///
/// When the URL is none, the file cannot be read, its text is no token, or neither carries a pin.
pub(crate) fn read(server: &str, token_file: Option<&Path>) -> Result<Credential, Problem> {
    let (url, url_pin) = split_url(server)?;
    let Some(path) = token_file else {
        return Err(Problem::new(ProblemCode::Unauthorized, format!("no token for {url}"))
            .why("--server needs an admin or viewer token")
            .fix(
                "on the server: ovctl token create --role admin > FILE; here: --token-file FILE",
            ));
    };
    let (text, warning) = read_file(path)?;
    let (bearer, token_pin) = split_token(text.trim(), path)?;
    let pin = url_pin.or(token_pin).ok_or_else(|| {
        Problem::new(ProblemCode::Unauthorized, format!("cannot tell whether {url} is the server"))
            .why("the token carries no pin of the server's key")
            .fix("name it with the URL: --server https://HOST:PORT#sha256=HEX")
    })?;
    Ok(Credential { url, pin: *pin.expose(), bearer, warning })
}

/// Splits `https://HOST:PORT[#sha256=HEX]`.
fn split_url(server: &str) -> Result<(String, Option<Secret>), Problem> {
    let bad = |why: &str| {
        Problem::new(ProblemCode::Usage, format!("`{server}` is not the URL of a server"))
            .why(why)
            .fix("write --server https://HOST:7443")
    };
    let (url, pin) = match server.split_once('#') {
        Some((url, fragment)) => {
            let hex = fragment
                .strip_prefix("sha256=")
                .ok_or_else(|| bad("behind # only sha256=HEX makes sense"))?;
            let pin = Secret::try_from(hex.to_owned())
                .map_err(|_| bad("a pin is 64 hexadecimal digits"))?;
            (url, Some(pin))
        }
        None => (server, None),
    };
    let parsed = reqwest::Url::parse(url).map_err(|error| bad(&error.to_string()))?;
    if parsed.scheme() != "https" || !parsed.has_host() {
        return Err(bad("it does not start with https:// and a host"));
    }
    if parsed.path() != "/" || parsed.query().is_some() || !parsed.username().is_empty() {
        return Err(bad("nothing but host and port may be in it"));
    }
    Ok((parsed.as_str().trim_end_matches('/').to_owned(), pin))
}

/// Splits `ova1.SECRET[.PIN]`. Messages never quote the token.
fn split_token(text: &str, path: &Path) -> Result<(Bearer, Option<Secret>), Problem> {
    let bad = |why: &str| {
        Problem::new(
            ProblemCode::Usage,
            format!("{} holds no admin or viewer token", path.display()),
        )
        .why(why)
        .fix("it is the one line `ova1.…` that `ovctl token create --role admin` printed")
    };
    if text.starts_with("ovt1.") {
        return Err(bad("it is a join token: for ovd and ovsap, not for ovctl"));
    }
    let rest = text.strip_prefix(PREFIX).ok_or_else(|| bad("it does not start with `ova1.`"))?;
    let (secret, pin) = match rest.split_once('.') {
        Some((secret, pin)) => (secret, Some(pin)),
        None => (rest, None),
    };
    let hex = |part: &str| {
        Secret::try_from(part.to_owned()).map_err(|_| bad("it was cut or changed on the way"))
    };
    hex(secret)?;
    Ok((Bearer(secret.to_owned()), pin.map(hex).transpose()?))
}

/// Reads a token file, and says when others can read it too.
fn read_file(path: &Path) -> Result<(Zeroizing<String>, Option<String>), Problem> {
    let unreadable = |error: std::io::Error| {
        Problem::new(
            ProblemCode::Unauthorized,
            format!("cannot read the token file {}", path.display()),
        )
        .why(error.to_string())
        .fix("name another: --token-file FILE, or - for stdin")
    };
    let mut text = String::new();
    let mut warning = None;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_MAX).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode();
        // A warning and no refusal: `token create > FILE` makes such files.
        warning = (mode & 0o077 != 0)
            .then(|| format!("others can read this token: chmod 600 {}", path.display()));
        file.take(FILE_MAX).read_to_string(&mut text)
    };
    match read {
        Ok(_) => Ok((Zeroizing::new(text), warning)),
        Err(error) => {
            text.zeroize();
            Err(unreadable(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn token_file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn secret_and_pin_come_apart() {
        let file = token_file(&format!("ova1.{}.{}\n", "ab".repeat(32), "cd".repeat(32)));

        let credential = read("https://192.0.2.1:7443/", Some(file.path())).unwrap();

        assert_eq!(credential.url, "https://192.0.2.1:7443");
        assert_eq!(credential.bearer.expose(), "ab".repeat(32));
        assert_eq!(credential.pin, [0xcd; 32]);
        assert_eq!(credential.warning, None);
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        let credential = read("https://192.0.2.1:7443/", Some(file.path())).unwrap();
        assert!(credential.warning.unwrap().contains("chmod 600"));
    }

    #[test]
    fn a_pin_in_the_url_serves_a_token_without_one() {
        let file = token_file(&format!("ova1.{}", "ab".repeat(32)));
        let url = format!("https://[::1]:7443#sha256={}", "ef".repeat(32));

        assert_eq!(read(&url, Some(file.path())).unwrap().pin, [0xef; 32]);
        let problem = read("https://[::1]:7443", Some(file.path())).err().unwrap();
        assert_eq!(problem.code, ProblemCode::Unauthorized);
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said_without_showing_it() {
        let secret = "5e".repeat(32);
        for text in ["", "ovt1.abc", "ova1.", &format!("ova1.{secret}0"), &format!("ovb1.{secret}")]
        {
            let file = token_file(text);
            let problem = read("https://h:1", Some(file.path())).err().unwrap();
            assert_eq!(problem.code, ProblemCode::Usage, "{text}");
            assert!(!problem.to_string().contains(&secret), "{problem}");
        }
        let missing = read("https://h:1", Some(Path::new("/nonexistent/t"))).err().unwrap();
        assert_eq!(missing.code, ProblemCode::Unauthorized);
        assert_eq!(read("https://h:1", None).err().unwrap().code, ProblemCode::Unauthorized);
    }

    #[test]
    fn only_https_urls_name_a_server() {
        for bad in
            ["http://h:1", "h:1", "https://", "https://h/x", "https://h#md5=1", "https://u@h"]
        {
            assert_eq!(read(bad, None).err().unwrap().code, ProblemCode::Usage, "{bad}");
        }
    }
}
