//! Replaces the secrets of a configuration's text by tags before the text reaches the disk, and puts them back
//! from the text that the operator keeps.
//!
//! A tag is an HMAC-SHA-256 (RFC 2104) of the secret, cut to 16 bytes, under a random key of this state
//! directory: equal secrets have equal tags, so that a change is noticed, and a tag alone does not let anyone
//! test a guess. Invariant: no secret that `config::secrets` finds is in a redacted text.

use std::collections::HashMap;
use std::fmt::Write as _;

use log::warn;
use ring::{hmac, rand};

use crate::bounded::Open;
use crate::config::{Secret, secrets, without_comments};
use crate::state::StateDir;

/// The file with the key. No source's file can have this name, since a source's name has no dot.
const KEY_FILE: &str = "redaction.key";
const KEY_BYTES: usize = 32;
/// The beginning of a redacted string, or of a redacted URL's fragment.
const MARK: &str = "secret:";
/// The bytes of a tag.
const TAG_BYTES: usize = 16;

/// The key of a state directory.
#[derive(Debug)]
pub(super) struct Redactor {
    key: hmac::Key,
}

/// A text with the secrets that could be put back.
pub(super) struct Restored {
    pub(super) text: String,
    /// How many secrets are unknown: their tags stand in the text.
    pub(super) missing: usize,
}

impl Redactor {
    /// Reads the key of a state directory, or makes one. Where the directory cannot be written, the key lasts as
    /// long as this process; then the next start finds no secret again, and takes the operator's file.
    pub(super) fn open(state: &StateDir) -> Self {
        let open = Open::state(KEY_BYTES as u64);
        let kept = open.read(&state.path().join(KEY_FILE)).ok();
        if let Some(bytes) = kept.filter(|bytes| bytes.len() == KEY_BYTES) {
            return Self::new(&bytes);
        }
        let random = rand::generate::<[u8; KEY_BYTES]>(&rand::SystemRandom::new());
        let bytes = random.expect("the kernel has random bytes").expose();
        if let Err(error) = state.write(KEY_FILE, bytes.to_vec()) {
            warn!(
                "{error}; after the next start, no earlier policy with a secret in its configuration can be restored whole"
            );
        }
        Self::new(&bytes)
    }

    fn new(key: &[u8]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// Returns a configuration's text without comments and with a tag for each secret. It is still TOML with the
    /// same keys, and each URL is still one. A text that is redacted stays as it is.
    pub(super) fn redact(&self, text: &str) -> String {
        let text = without_comments(text);
        replace(&text, |secret| match tag(secret) {
            Some(_) => None,
            None => Some(format!("{:?}", self.redacted(secret))),
        })
    }

    /// Returns a redacted text with the secrets that `current`, the text of the operator's file, has too.
    pub(super) fn restore(&self, text: &str, current: &str) -> Restored {
        let known = secrets(current);
        let by_tag: HashMap<String, &str> = known
            .iter()
            .map(|secret| (self.redacted(secret), &current[secret.span.clone()]))
            .collect();
        let mut missing = 0;
        let text = replace(text, |secret| {
            tag(secret)?;
            let literal = by_tag.get(&secret.value);
            missing += usize::from(literal.is_none());
            literal.map(|literal| (*literal).to_owned())
        });
        Restored { text, missing }
    }

    /// The value that stands for a secret: a URL keeps its public part, so that it stays one and names its host.
    fn redacted(&self, secret: &Secret) -> String {
        let digest = hmac::sign(&self.key, secret.value.as_bytes());
        let mut value = match &secret.public {
            Some(public) => format!("{public}#{MARK}"),
            None => MARK.to_owned(),
        };
        for byte in &digest.as_ref()[..TAG_BYTES] {
            write!(value, "{byte:02x}").expect("a string takes any text");
        }
        value
    }
}

/// The tag that a string already is, if it is one.
fn tag(secret: &Secret) -> Option<&str> {
    let (_, tag) = secret.value.rsplit_once(MARK)?;
    let is_tag = tag.len() == 2 * TAG_BYTES && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let whole = match &secret.public {
        Some(public) => secret.value == format!("{public}#{MARK}{tag}"),
        None => secret.value == format!("{MARK}{tag}"),
    };
    (is_tag && whole).then_some(tag)
}

/// Replaces each secret's literal by the one that `with` returns.
fn replace(text: &str, mut with: impl FnMut(&Secret) -> Option<String>) -> String {
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for secret in secrets(text) {
        if let Some(literal) = with(&secret) {
            out.push_str(&text[at..secret.span.start]);
            out.push_str(&literal);
            at = secret.span.end;
        }
    }
    out.push_str(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# token abc
[on_change]
command = ["/usr/bin/notify", "argument-secret"]
webhook = "https://hooks.example/path-secret"
[sources.a]
url = "https://user:password-secret@vendor.example/list?token=query-secret"
headers = { Authorization = "Bearer header-secret" }
[sources.b]
url = "https://vendor.example/list"
"#;

    #[test]
    fn no_secret_stays_and_all_come_back() {
        let redactor = Redactor::new(&[7; KEY_BYTES]);
        let redacted = redactor.redact(TEXT);
        assert!(
            !redacted.contains("-secret") && !redacted.contains("abc"),
            "{redacted}"
        );
        assert!(
            redacted.contains("\"https://vendor.example/list#secret:"),
            "{redacted}"
        );
        assert_eq!(redactor.redact(&redacted), redacted);
        let restored = redactor.restore(&redacted, TEXT);
        assert_eq!(
            (&*restored.text, restored.missing),
            (&*without_comments(TEXT), 0)
        );
    }

    #[test]
    fn a_secret_that_changed_is_missing() {
        let redactor = Redactor::new(&[7; KEY_BYTES]);
        let redacted = redactor.redact(TEXT);
        let restored = redactor.restore(&redacted, &TEXT.replace("header-secret", "other"));
        assert_eq!(restored.missing, 1);
        assert!(
            restored.text.contains("Authorization = \"secret:"),
            "{}",
            restored.text
        );
        assert_eq!(redactor.restore(&redacted, "").missing, 4);
        // Under another key, nothing is recognised.
        let other = Redactor::new(&[8; KEY_BYTES]);
        assert_eq!(other.restore(&redacted, TEXT).missing, 4);
    }

    #[test]
    fn the_key_is_kept_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("a state directory");
        let redacted = Redactor::open(&state).redact(TEXT);
        assert_eq!(Redactor::open(&state).redact(TEXT), redacted);
        let found = std::fs::metadata(folder.path().join(KEY_FILE)).expect("is kept");
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
    }
}
