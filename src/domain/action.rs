//! Actions: WorkOS asks, before it completes a sign-in or a sign-up, whether it may.

use std::fmt;

use bytes::Bytes;

/// WorkOS's own bound on what a denied person is told, characters as JavaScript counts them: UTF-16 units.
const MESSAGE_LIMIT: usize = 500;

/// An attempt to sign in or up, as WorkOS describes it. Absent and null mean the same.
///
/// `Debug` shows ids alone, so that an action in a log line is not personal data in a log line.
#[derive(Clone)]
pub struct Action {
    /// WorkOS's id of the attempt; opaque.
    pub id: String,
    /// What is attempted, and what is known in that case alone.
    pub context: ActionContext,
    /// The person's address.
    pub email: String,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Display name.
    pub name: Option<String>,
    /// Where the attempt comes from.
    pub ip_address: Option<String>,
    /// By which browser.
    pub user_agent: Option<String>,
    /// WorkOS's own word for the device.
    pub device_fingerprint: Option<String>,
    /// `Password`, `GoogleOAuth`, `SSO` and others; WorkOS adds some without notice.
    pub authentication_method: Option<String>,
    /// The action as WorkOS sent it, byte for byte.
    pub payload: Bytes,
}

/// What is attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionContext {
    /// An existing user signs in.
    Authentication {
        /// WorkOS's id of the user.
        user_id: String,
        /// Whether WorkOS has seen the user own the address.
        email_verified: bool,
        /// The application's own id for the user.
        external_id: Option<String>,
        /// Into which organization.
        organization_id: Option<String>,
        /// By which membership.
        organization_membership_id: Option<String>,
        /// Who will have issued the access token.
        issuer: Option<String>,
    },
    /// Somebody signs up; there is no user yet.
    UserRegistration {
        /// What the person was invited by, if anything.
        invitation: Option<Invitation>,
    },
}

/// An invitation that a sign-up follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// WorkOS's id of it.
    pub id: Option<String>,
    /// Into which organization.
    pub organization_id: Option<String>,
    /// The user who invited.
    pub inviter_user_id: Option<String>,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Action").field("id", &self.id).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl Action {
    /// Sign-in or sign-up.
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        match self.context {
            ActionContext::Authentication { .. } => ActionKind::Authentication,
            ActionContext::UserRegistration { .. } => ActionKind::UserRegistration,
        }
    }

    /// Somebody signs up.
    #[must_use]
    pub fn is_registration(&self) -> bool {
        self.kind() == ActionKind::UserRegistration
    }

    /// The domain of the address, in the one form in which domains can be compared: `example.com`, lower case, international
    /// names as `xn--…`.
    #[must_use]
    pub fn email_domain(&self) -> String {
        split(&self.email).1
    }
}

/// Sign-in or sign-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// An existing user signs in.
    Authentication,
    /// Somebody signs up.
    UserRegistration,
}

impl ActionKind {
    /// The word used in metrics, in logs and in WorkOS's names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::UserRegistration => "user_registration",
        }
    }
}

/// What WorkOS is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Stop.
    Deny {
        /// What the person is told; without one, WorkOS says something of its own.
        message: Option<String>,
    },
}

impl Verdict {
    /// Stops the attempt and tells the person why: at most 500 characters, the rest is cut off. Empty text is none.
    pub fn deny(message: impl AsRef<str>) -> Self {
        let mut room = MESSAGE_LIMIT;
        let fits = |char: &char| match room.checked_sub(char.len_utf16()) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        };
        // PostgreSQL's text holds no NUL.
        let message: String = message.as_ref().trim().chars().take_while(fits).collect();
        let message = message.replace('\0', "\u{FFFD}");
        Self::Deny { message: (!message.is_empty()).then_some(message) }
    }

    /// The same verdict with a message that WorkOS and PostgreSQL take, however it was made.
    #[must_use]
    pub(crate) fn fit(self) -> Self {
        match self {
            Self::Allow => Self::Allow,
            Self::Deny { message } => Self::deny(message.unwrap_or_default()),
        }
    }

    /// The word used in the database, in metrics and in logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny { .. } => "deny",
        }
    }

    /// What the person is told.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Allow => None,
            Self::Deny { message } => message.as_deref(),
        }
    }
}

/// Local part and domain of an address, each in the form in which it can be compared.
///
/// The domain is what follows the last `@` (a quoted local part may hold others), by UTS 46 as browsers and mail programs read
/// it: case, full-width letters, Unicode names and their `xn--` form are one, and dots at the end and control characters say
/// nothing. The local part is compared without regard to case and otherwise as it is: `ada+x@` and `a.da@` are not `ada@`.
pub(super) fn split(address: &str) -> (String, String) {
    let address = address.trim();
    // Without an @ it is no address, and at no domain: no rule about one may let it in.
    let (local, domain) = address.rsplit_once(['@', '\u{FF20}']).unwrap_or((address, ""));
    (local.trim().to_lowercase(), comparable(domain))
}

/// A domain in the form in which it can be compared.
pub(super) fn comparable(domain: &str) -> String {
    let plain: String = domain.chars().filter(|char| !char.is_control()).collect();
    let plain = plain.trim().trim_end_matches(['.', '\u{3002}', '\u{FF0E}', '\u{FF61}']);
    idna::domain_to_ascii(plain).unwrap_or_else(|_| plain.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_read_as_mail_programs_read_them() {
        for (address, local, domain) in [
            ("ada@gmail.com", "ada", "gmail.com"),
            (" Ada@GMAIL.com ", "ada", "gmail.com"),
            ("ada@gmail.com.", "ada", "gmail.com"),
            ("ada@gmail.com..", "ada", "gmail.com"),
            ("ada@gmail.com\u{0}", "ada", "gmail.com"),
            ("ada\u{FF20}gmail.com", "ada", "gmail.com"),
            ("ada@ gmail.com", "ada", "gmail.com"),
            ("ada@ｇｍａｉｌ.com", "ada", "gmail.com"),
            ("ada@gmail\u{3002}com", "ada", "gmail.com"),
            ("ada@gma\u{AD}il.com", "ada", "gmail.com"),
            ("\"ada@example.com\"@gmail.com", "\"ada@example.com\"", "gmail.com"),
            ("ada@gmail.com@example.com", "ada@gmail.com", "example.com"),
            ("ada+spam@gmail.com", "ada+spam", "gmail.com"),
            ("ada@MÜNCHEN.example", "ada", "xn--mnchen-3ya.example"),
            ("ada@xn--mnchen-3ya.example", "ada", "xn--mnchen-3ya.example"),
            ("Åsa@example.com", "åsa", "example.com"),
            ("ada@[192.0.2.1]", "ada", "[192.0.2.1]"),
            ("gmail.com", "gmail.com", ""),
            ("ada@", "ada", ""),
            ("", "", ""),
        ] {
            assert_eq!(split(address), (local.to_owned(), domain.to_owned()), "{address}");
        }
    }

    #[test]
    fn a_message_is_cut_at_a_character_and_holds_no_nul() {
        let long = "é🚫".repeat(400);
        let cut = Verdict::deny(&long).message().map(str::to_owned).unwrap();
        assert_eq!((cut.chars().count(), cut.encode_utf16().count()), (333, 499), "half an emoji is none");
        assert_eq!(Verdict::deny("é".repeat(501)).message().map(|message| message.chars().count()), Some(500));
        let unfit = Verdict::Deny { message: Some(long + "\0") };
        assert_eq!(unfit.fit().message(), Some(cut.as_str()));
        assert_eq!(Verdict::deny("no\0where").message(), Some("no\u{FFFD}where"));
        assert_eq!(Verdict::deny("  "), Verdict::Deny { message: None });
        assert_eq!(Verdict::Allow.message(), None);
    }
}
