//! Replaces the secrets of a configuration by tags before it is stored, and restores them from the present file.
//!
//! A tag is an HMAC-SHA-256 (RFC 2104) of the secret, truncated to 16 bytes, with a random key of the state directory.
//! Equal secrets have equal tags, so that a change is detected; without the key, a guess cannot be tested.
//! Invariant: a redacted text has no secret that `config::secrets` finds.

use std::collections::HashMap;
use std::fmt::Write as _;

use allowlist_files::bounded::Open;
use allowlist_lists::state::StateDir;
use log::warn;
use ring::{hmac, rand};

use crate::config::{Secret, secrets, without_comments};

/// The name of the file with the redaction key. No list of a source can have this name, since names of sources have no
/// dot.
const KEY_FILE: &str = "redaction.key";
const KEY_BYTES: usize = 32;
/// The beginning of a tag, which replaces a secret string or is the fragment of a redacted URL.
const MARK: &str = "secret:";
/// The number of bytes of the truncated HMAC in a tag, which has two hexadecimal digits for each.
const TAG_BYTES: usize = 16;

/// The redactor of configuration texts, which holds the secret key of a state directory.
#[derive(Debug)]
pub(super) struct Redactor {
    key: hmac::Key,
}

/// A configuration text whose secrets were restored.
pub(super) struct Restored {
    pub(super) text: String,
    /// The number of secrets that could not be restored; the text contains their tags instead.
    pub(super) missing: usize,
}

impl Redactor {
    /// Reads the redaction key of a state directory, or creates one. If the new key cannot be stored, later starts
    /// cannot restore secrets.
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
                "cannot store the redaction key: {error}; after the next start, the secrets of earlier policies cannot be restored"
            );
        }
        Self::new(&bytes)
    }

    fn new(key: &[u8]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// Returns the text without comments, and with a tag in place of each secret. The result is valid TOML with the
    /// same keys and valid URLs. A redacted text is returned unchanged.
    pub(super) fn redact(&self, text: &str) -> String {
        let text = without_comments(text);
        replace(&text, |secret| match tag(secret) {
            Some(_) => None,
            None => Some(format!("{:?}", self.redacted(secret))),
        })
    }

    /// Restores each secret of a redacted text that also occurs in `current`, the text of the present file.
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

    /// Returns the replacement of a secret: a tag, and for a URL also its public part.
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

/// Returns the hexadecimal digits of the tag if the string is a tag already, or `None` for any other string.
fn tag(secret: &Secret) -> Option<&str> {
    let (_, tag) = secret.value.rsplit_once(MARK)?;
    let is_tag = tag.len() == 2 * TAG_BYTES && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let whole = match &secret.public {
        Some(public) => secret.value == format!("{public}#{MARK}{tag}"),
        None => secret.value == format!("{MARK}{tag}"),
    };
    (is_tag && whole).then_some(tag)
}

/// Replaces each secret's string in the text by the string that `with` returns; `None` keeps the secret.
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
    fn secrets_round_trip() {
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
    fn only_the_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("a state directory");
        let redacted = Redactor::open(&state).redact(TEXT);
        assert_eq!(Redactor::open(&state).redact(TEXT), redacted);
        let found = std::fs::metadata(folder.path().join(KEY_FILE)).expect("is kept");
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
    }
}
