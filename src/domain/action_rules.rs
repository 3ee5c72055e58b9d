//! Rules that decide by email address who may sign in or sign up. The first matching rule decides.

use std::fmt;
use std::str::FromStr;

use super::action::{Action, ActionKind, Verdict, comparable, split};

/// Maximum number of rules.
const LIMIT: usize = 1_000;

/// One rule.
#[derive(Clone, PartialEq, Eq)]
pub struct Rule {
    /// The kind of attempt. `None` means both kinds.
    pub kind: Option<ActionKind>,
    /// The people it applies to.
    pub who: Who,
    /// The verdict if the rule matches.
    pub verdict: Verdict,
}

/// The people a rule applies to. Addresses and domains are not case-sensitive. International domains can have either form.
#[derive(Clone, PartialEq, Eq)]
pub enum Who {
    /// All people.
    Anyone,
    /// Addresses with exactly this domain: `@example.com`.
    Domain(String),
    /// Addresses with a subdomain of this domain, but not with the domain itself: `@*.example.com`.
    Below(String),
    /// This address. Dots, and a plus with the text after it, are part of the address.
    Address(String),
}

/// Shows no address, because an address is personal data.
impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anyone => "Anyone",
            Self::Domain(_) => "Domain(…)",
            Self::Below(_) => "Below(…)",
            Self::Address(_) => "Address(…)",
        })
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict.as_str();
        f.debug_struct("Rule").field("kind", &self.kind).field("who", &self.who).field("verdict", &verdict).finish()
    }
}

/// An ordered list of rules. As text, the rules are separated by semicolons or line breaks:
///
/// ```
/// use authkit_sync::Rules;
///
/// let rules: Rules = r#"
///     deny registration @gmail.com "Please sign up with your work address."
///     deny *            spammer@example.com
///     allow registration @*.example.com
///     deny registration *
/// "#
/// .parse()
/// .unwrap();
/// assert_eq!(rules.len(), 4);
/// let error = "deny registration gmail.com".parse::<Rules>().unwrap_err();
/// assert!(error.to_string().starts_with("rule 1"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Prepared>);

/// A rule whose address or domain is in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Prepared(Rule);

/// The number of an invalid rule, and the reason. The text does not contain the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {number} {wrong}")]
pub struct RuleError {
    number: usize,
    wrong: &'static str,
}

impl Rules {
    /// Creates a list of rules in this order.
    ///
    /// # Errors
    /// [`RuleError`] if a rule cannot match any person, or there are more than 1000 rules.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        let mut prepared = Vec::new();
        for rule in rules {
            let number = prepared.len() + 1;
            let invalid = |wrong| RuleError { number, wrong };
            if number > LIMIT {
                return Err(invalid("exceeds the limit of 1000 rules"));
            }
            let rule = prepare(rule).map_err(invalid)?;
            prepared.push(Prepared(rule));
        }
        Ok(Self(prepared))
    }

    /// Returns the number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number (from 1) and the verdict of the first matching rule, or `None` if no rule matches.
    #[must_use]
    pub fn decide(&self, action: &Action) -> Option<(usize, &Verdict)> {
        let (local, domain) = split(&action.email);
        let matching = self.0.iter().position(|Prepared(rule)| {
            let about = rule.kind.is_none_or(|kind| kind == action.kind());
            about
                && match &rule.who {
                    Who::Anyone => true,
                    Who::Domain(wanted) => *wanted == domain,
                    Who::Below(wanted) => domain.strip_suffix(wanted).is_some_and(|rest| rest.ends_with('.')),
                    Who::Address(wanted) => wanted.rsplit_once('@') == Some((&local, &domain)),
                }
        })?;
        self.0.get(matching).map(|Prepared(rule)| (matching + 1, &rule.verdict))
    }
}

fn prepare(mut rule: Rule) -> Result<Rule, &'static str> {
    rule.verdict = rule.verdict.fit();
    match &mut rule.who {
        Who::Anyone => {}
        Who::Domain(domain) | Who::Below(domain) => {
            let plain = comparable(domain);
            if plain.is_empty() || plain.contains(['@', '*', ' ', ',']) || plain.starts_with('.') {
                return Err("has an invalid domain: write @example.com, or @*.example.com for its subdomains");
            }
            *domain = plain;
        }
        Who::Address(address) => {
            let (local, domain) = split(address);
            if local.is_empty() || domain.is_empty() || domain.contains(['*', ' ', ',']) {
                return Err("has an invalid address: write the complete address, for example name@example.com");
            }
            *address = format!("{local}@{domain}");
        }
    }
    Ok(rule)
}

impl FromStr for Rules {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut rules = Vec::new();
        for (rest, number) in pieces(text).zip(1..) {
            rules.push(parse(rest).map_err(|wrong| RuleError { number, wrong })?);
        }
        Self::new(rules)
    }
}

/// Returns the text of each rule: splits at line breaks, and at semicolons outside quotation marks. Skips empty rules.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let between = move |char: char| {
        quoted ^= char == '"';
        // A message ends with its line, so that a missing quotation mark does not hide the rules after it.
        quoted &= char != '\n';
        char == '\n' || (char == ';' && !quoted)
    };
    text.split(between).map(str::trim).filter(|piece| !piece.is_empty())
}

fn parse(text: &str) -> Result<Rule, &'static str> {
    let (head, message) = match text.split_once('"') {
        None => (text, None),
        Some((head, rest)) => {
            let message = rest.strip_suffix('"').filter(|message| !message.contains('"'));
            let wrong = "must end with the message in quotation marks: write deny … \"message\"";
            (head, Some(message.ok_or(wrong)?))
        }
    };
    let mut words = head.split_whitespace();
    let verdict = match (words.next(), message) {
        (Some("allow"), None) => Verdict::Allow,
        (Some("allow"), Some(_)) => return Err("has a message, but only a deny rule can have one: remove the message"),
        (Some("deny"), message) => Verdict::deny(message.unwrap_or_default()),
        _ => return Err("must begin with allow or deny"),
    };
    let kind = match words.next() {
        Some("registration") => Some(ActionKind::UserRegistration),
        Some("authentication") => Some(ActionKind::Authentication),
        Some("*") => None,
        _ => return Err("has a wrong second word: write registration, authentication or *"),
    };
    let who = match words.next() {
        Some("*") => Who::Anyone,
        Some(word) => match (word.strip_prefix("@*."), word.strip_prefix('@')) {
            (Some(domain), _) => Who::Below(domain.to_owned()),
            (None, Some(domain)) => Who::Domain(domain.to_owned()),
            (None, None) if word.contains('@') => Who::Address(word.to_owned()),
            (None, None) => {
                return Err("has a wrong third word: write @example.com, @*.example.com, an address or *");
            }
        },
        None => return Err("has a wrong third word: write @example.com, @*.example.com, an address or *"),
    };
    if words.next().is_some() {
        return Err(
            "has more than three words: put the message in quotation marks, and separate rules with semicolons",
        );
    }
    Ok(Rule { kind, who, verdict })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::action::ActionContext;
    use super::*;

    fn action(kind: ActionKind, email: &str) -> Action {
        let context = match kind {
            ActionKind::UserRegistration => ActionContext::UserRegistration { invitation: None },
            ActionKind::Authentication => ActionContext::Authentication {
                user_id: "user_1".to_owned(),
                email_verified: true,
                external_id: None,
                organization_id: None,
                organization_membership_id: None,
                issuer: None,
            },
        };
        Action {
            id: "action_1".to_owned(),
            context,
            email: email.to_owned(),
            first_name: None,
            last_name: None,
            name: None,
            ip_address: None,
            user_agent: None,
            device_fingerprint: None,
            authentication_method: None,
            payload: Bytes::new(),
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        use ActionKind::{Authentication, UserRegistration};
        let rules: Rules = r#"
            allow * ada@gmail.com; deny registration @gmail.com "Work; address, please."
            deny * @*.spam.example
            allow registration @MÜNCHEN.example
            deny authentication GONE@Example.com "Bye."
            deny registration *;
        "#
        .parse()
        .unwrap();
        assert_eq!(rules.len(), 6);
        for (kind, email, rule) in [
            (UserRegistration, "ada@gmail.com", Some(1)),
            (Authentication, "Ada@Gmail.com", Some(1)),
            (UserRegistration, "ada+1@gmail.com", Some(2)),
            (UserRegistration, "a.da@gmail.com", Some(2)),
            (UserRegistration, "eve@GMAIL.COM.", Some(2)),
            (UserRegistration, "\"ada@gmail.com\"@gmail.com", Some(2)),
            (UserRegistration, "eve@ｇmail.com", Some(2)),
            (Authentication, "eve@gmail.com", None),
            (UserRegistration, "eve@notgmail.com", Some(6)),
            (UserRegistration, "eve@gmail.com.example", Some(6)),
            (UserRegistration, "eve@x.spam.example", Some(3)),
            (Authentication, "eve@a.b.SPAM.example", Some(3)),
            (Authentication, "eve@spam.example", None),
            (Authentication, "eve@notspam.example", None),
            (UserRegistration, "eve@xn--mnchen-3ya.example", Some(4)),
            (UserRegistration, "eve@sub.münchen.example", Some(6)),
            (Authentication, "gone@example.com", Some(5)),
            (UserRegistration, "gone@example.com", Some(6)),
            (UserRegistration, "gmail.com", Some(6)),
            (UserRegistration, "münchen.example", Some(6)),
            (UserRegistration, "", Some(6)),
            (Authentication, "", None),
        ] {
            let decided = rules.decide(&action(kind, email)).map(|(number, _)| number);
            assert_eq!(decided, rule, "{kind:?} {email}");
        }
        let (_, verdict) = rules.decide(&action(UserRegistration, "eve@gmail.com")).unwrap();
        assert_eq!(verdict.message(), Some("Work; address, please."));
        assert_eq!(Rules::default().decide(&action(UserRegistration, "eve@gmail.com")), None);
    }

    #[test]
    fn an_invalid_rule_is_reported_by_number_and_never_quoted() {
        for (text, number, says) in [
            ("forbid registration @gmail.com", 1, "begin with allow or deny"),
            ("deny @gmail.com", 1, "second word"),
            ("deny sign-up @gmail.com", 1, "second word"),
            ("deny registration", 1, "third word"),
            ("deny registration gmail.com", 1, "third word"),
            ("allow * *; deny registration \"no\"", 2, "third word"),
            ("deny registration @gmail.com no", 1, "more than three words"),
            ("deny registration @gmail.com, deny registration @x.example", 1, "more than three words"),
            ("deny registration @gmail.com \"no", 1, "in quotation marks"),
            ("deny registration @gmail.com \"no\" now", 1, "in quotation marks"),
            ("allow registration @gmail.com \"yes\"", 1, "only a deny rule"),
            ("allow * *\n\n;deny * @", 2, "invalid domain"),
            ("deny * @a@b", 1, "invalid domain"),
            ("deny * @.example.com", 1, "invalid domain"),
            ("deny * @*.*.example.com", 1, "invalid domain"),
            ("deny * @*", 1, "invalid domain"),
            ("deny * secret.person@", 1, "invalid address"),
            ("deny * secret.person@*.example.com", 1, "invalid address"),
        ] {
            let error = text.parse::<Rules>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("rule {number} ")) && error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret") && !error.contains("gmail"), "{error}");
        }
        assert!("".parse::<Rules>().unwrap().is_empty() && " ;\n; ".parse::<Rules>().unwrap().is_empty());
        assert!("deny * *;".repeat(1_001).parse::<Rules>().is_err());
        let shown = format!("{:?}", "deny * secret.person@gmail.com".parse::<Rules>().unwrap());
        assert!(!shown.contains("secret") && shown.contains("deny"), "{shown}");
    }
}
