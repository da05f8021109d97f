//! The little of HTTP/1.1 that a health question needs. Bytes in, bytes out; pure.

/// Longest head of a question that is looked at, in bytes.
pub(super) const HEAD_MAX: usize = 8192;

/// How much of a program's answer is read for its first line.
pub(super) const STATUS_MAX: usize = 1024;

/// What ends a head.
const END: &[u8] = b"\r\n\r\n";

/// Headers that are about one connection, or that `ovd` writes itself.
const OWN_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Whether `head` has its empty line.
pub(super) fn is_whole(head: &[u8]) -> bool {
    head.windows(END.len()).any(|window| window == END)
}

/// A GET, and what goes along with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question<'a> {
    path: &'a str,
    host: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Question<'a> {
    /// Reads the head of a request; none when it is no GET of HTTP/1.1.
    pub(super) fn parse(head: &'a [u8]) -> Option<Self> {
        let end = head.windows(END.len()).position(|window| window == END)?;
        let text = std::str::from_utf8(head.get(..end)?).ok()?;
        if !text.bytes().all(|c| c.is_ascii_graphic() || b" \t\r\n".contains(&c)) {
            return None;
        }
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, path, version) = (words.next()?, words.next()?, words.next()?);
        if method != "GET" || !version.starts_with("HTTP/1.") || words.next().is_some() {
            return None;
        }
        let mut host = "";
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_graphic());
            if !is_name || line.contains(['\r', '\n']) {
                return None;
            }
            if name.eq_ignore_ascii_case("host") {
                host = value.trim();
            } else if !OWN_HEADERS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                headers.push((name, value.trim()));
            }
        }
        Some(Self { path, host, headers })
    }

    /// The name of the target that is asked about.
    pub(super) fn name(&self) -> &'a str {
        self.path.trim_start_matches('/')
    }

    /// The request for the program: another path, and its own port where ours was named.
    pub(super) fn pass_on(&self, path: &str, own_port: u16, port: u16) -> Vec<u8> {
        let own = format!(":{own_port}");
        let host = match self.host.strip_suffix(&own) {
            Some(host) => format!("{host}:{port}"),
            None if self.host.is_empty() => format!("localhost:{port}"),
            None => self.host.to_owned(),
        };
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in &self.headers {
            request.extend([*name, ": ", *value, "\r\n"]);
        }
        request.push_str("\r\n");
        request.into_bytes()
    }
}

/// The status in the first line of an answer.
pub(super) fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    words.next()?.parse().ok().filter(|status| (100..=599).contains(status))
}

/// An answer with `why` as its text.
pub(super) fn response(status: u16, why: &str) -> String {
    let reason = if status < 400 { "OK" } else { "Unhealthy" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{why}\n",
        why.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_is_passed_on_with_its_headers_and_the_programs_port() {
        let head =
            b"GET /web/liveness HTTP/1.1\r\nHost: 10.1.2.3:6081\r\nUser-Agent: kube-probe/1.34\r\n\
            X-Custom:  yes \r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        let question = Question::parse(head).unwrap();

        assert_eq!(question.name(), "web/liveness");
        let request = String::from_utf8(question.pass_on("/healthz?x=1", 6081, 8080)).unwrap();
        assert_eq!(
            request,
            "GET /healthz?x=1 HTTP/1.1\r\nHost: 10.1.2.3:8080\r\nConnection: close\r\n\
             User-Agent: kube-probe/1.34\r\nX-Custom: yes\r\n\r\n"
        );
        let named = Question::parse(b"GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n").unwrap();
        let request = String::from_utf8(named.pass_on("/", 6081, 8080)).unwrap();
        assert!(request.contains("Host: shop.example\r\n"));
    }

    #[test]
    fn anything_else_is_no_question() {
        for bad in [
            &b""[..],
            b"GET /a HTTP/1.1\r\n",
            b"POST /a HTTP/1.1\r\n\r\n",
            b"GET /a HTTP/2\r\n\r\n",
            b"GET /a b HTTP/1.1\r\n\r\n",
            b"GET /a HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /a HTTP/1.1\r\nx y: z\r\n\r\n",
            b"GET /a HTTP/1.1\r\nx: a\nHost: b\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"GET /\0 HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(Question::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn the_status_of_an_answer_is_read() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 500\n"), Some(500));
        for bad in [&b""[..], b"\n", b"HTTP/1.1\n", b"HTTP/1.1 9999\n", b"SSH-2.0 200\n", b"\xff"] {
            assert_eq!(status(bad), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_nothing_is_smuggled(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            status(&bytes);
            is_whole(&bytes);
            let head = [b"GET /a HTTP/1.1\r\nHost: h\r\n", bytes.as_slice(), END].concat();
            if let Some(question) = Question::parse(&head) {
                let request = question.pass_on("/", 1, 2);
                let ends = request.windows(END.len()).filter(|window| *window == END).count();
                prop_assert!(ends == 1 && request.ends_with(END), "one request became two");
            }
        }
    }
}
