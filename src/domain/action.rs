//! Actions: before it completes a sign-in or sign-up, WorkOS requests a verdict.

use std::fmt;

use bytes::Bytes;

/// WorkOS's limit of the message for a denied person, in UTF-16 code units.
const MESSAGE_LIMIT: usize = 500;

/// An attempt to sign in or sign up, as WorkOS describes it. Absent and null fields are both `None`.
///
/// `Debug` shows only IDs, so that a log line contains no personal data.
#[derive(Clone)]
pub struct Action {
    /// WorkOS's ID of the attempt. Opaque.
    pub id: String,
    /// What is attempted, with the fields that only this kind has.
    pub context: ActionContext,
    /// The person's email address.
    pub email: String,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Display name.
    pub name: Option<String>,
    /// The IP address of the attempt.
    pub ip_address: Option<String>,
    /// The user agent of the browser.
    pub user_agent: Option<String>,
    /// WorkOS's identifier of the device.
    pub device_fingerprint: Option<String>,
    /// `Password`, `GoogleOAuth`, `SSO` and others. WorkOS adds values without notice.
    pub authentication_method: Option<String>,
    /// The action as WorkOS sent it, byte for byte.
    pub payload: Bytes,
}

/// What is attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionContext {
    /// An existing user signs in.
    Authentication {
        /// WorkOS's ID of the user.
        user_id: String,
        /// Whether WorkOS has verified the email address.
        email_verified: bool,
        /// The application's own ID of the user.
        external_id: Option<String>,
        /// The organization that the user signs in to.
        organization_id: Option<String>,
        /// The user's membership in the organization.
        organization_membership_id: Option<String>,
        /// The issuer of the access token.
        issuer: Option<String>,
    },
    /// A person signs up. There is no user yet.
    UserRegistration {
        /// The invitation, if any.
        invitation: Option<Invitation>,
    },
}

/// An invitation that a sign-up follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// WorkOS's ID of the invitation.
    pub id: Option<String>,
    /// The organization of the invitation.
    pub organization_id: Option<String>,
    /// The user who sent the invitation.
    pub inviter_user_id: Option<String>,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Action").field("id", &self.id).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl Action {
    /// Returns whether it is a sign-in or a sign-up.
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        match self.context {
            ActionContext::Authentication { .. } => ActionKind::Authentication,
            ActionContext::UserRegistration { .. } => ActionKind::UserRegistration,
        }
    }

    /// Returns true if it is a sign-up.
    #[must_use]
    pub fn is_registration(&self) -> bool {
        self.kind() == ActionKind::UserRegistration
    }

    /// Returns the domain of the email address in its normal form: lower case, international names as `xn--…`.
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
    /// A person signs up.
    UserRegistration,
}

impl ActionKind {
    /// Returns the word for metrics, logs and WorkOS's names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::UserRegistration => "user_registration",
        }
    }
}

/// The answer to an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allow the attempt.
    Allow,
    /// Deny the attempt.
    Deny {
        /// The message for the person. Without it, WorkOS shows its own.
        message: Option<String>,
    },
}

impl Verdict {
    /// Denies the attempt with a message for the person. A message longer than 500 characters is truncated, and an empty one is
    /// omitted.
    pub fn deny(message: impl AsRef<str>) -> Self {
        let mut room = MESSAGE_LIMIT;
        let fits = |char: &char| match room.checked_sub(char.len_utf16()) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        };
        // PostgreSQL cannot store NUL.
        let message: String = message.as_ref().trim().chars().take_while(fits).collect();
        let message = message.replace('\0', "\u{FFFD}");
        Self::Deny { message: (!message.is_empty()).then_some(message) }
    }

    /// Returns the verdict with a message that WorkOS and PostgreSQL accept.
    #[must_use]
    pub(crate) fn fit(self) -> Self {
        match self {
            Self::Allow => Self::Allow,
            Self::Deny { message } => Self::deny(message.unwrap_or_default()),
        }
    }

    /// Returns the word for the database, metrics and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny { .. } => "deny",
        }
    }

    /// Returns the message for the person.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Allow => None,
            Self::Deny { message } => message.as_deref(),
        }
    }
}

/// Returns the local part and the domain of an email address in their normal forms.
///
/// The domain is the text after the last `@` (a quoted local part can contain others), normalized by UTS 46 as in browsers and mail
/// programs: lower case, half-width letters, Unicode names as `xn--…`, without trailing dots and control characters. The local part
/// is only converted to lower case: `ada+x@` and `a.da@` are not `ada@`.
pub(super) fn split(address: &str) -> (String, String) {
    let address = address.trim();
    // Text without an @ has no domain, so that no rule for a domain allows it.
    let (local, domain) = address.rsplit_once(['@', '\u{FF20}']).unwrap_or((address, ""));
    (local.trim().to_lowercase(), comparable(domain))
}

/// Returns a domain in its normal form.
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
