//! One sandbox, asked through one node, and what became of each operation.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Request;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::facts::{Facts, shortened};
use crate::world::{Answer, Made, World};

const SOCKET_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// Refused with a 503 that says what to do.
    NeedsDesktop,
    /// Not served, or not as documented.
    Failed(String),
}

pub struct Walk<'w> {
    pub world: &'w World,
    pub facts: &'w Facts,
    pub sandbox: &'w Made<'w>,
    /// Does not own the sandbox.
    pub node: usize,
    /// Before the operation's path.
    prefix: String,
    pub outcomes: BTreeMap<String, Outcome>,
}

/// A request, but for what the facts say of it.
#[derive(Default)]
pub struct Call {
    parameters: Vec<(&'static str, String)>,
    query: Vec<(&'static str, String)>,
    content_type: Option<&'static str>,
    body: Option<Vec<u8>>,
}

pub fn call() -> Call {
    Call::default()
}

impl Call {
    pub fn at(mut self, name: &'static str, value: impl ToString) -> Call {
        self.parameters.push((name, value.to_string()));
        self
    }

    pub fn query(mut self, name: &'static str, value: impl ToString) -> Call {
        self.query.push((name, value.to_string()));
        self
    }

    pub fn json(mut self, body: Value) -> Call {
        (self.content_type, self.body) = (Some("application/json"), Some(body.to_string().into_bytes()));
        self
    }

    pub fn text(mut self, body: &str) -> Call {
        self.body = Some(body.as_bytes().to_vec());
        self
    }

    /// Parts of a form: the name with whatever follows it, and the content.
    pub fn form(mut self, parts: &[(&str, &str)]) -> Call {
        let parts = parts.iter().map(|(name, content)| {
            format!("--of-the-form\r\nContent-Disposition: form-data; name={name}\r\n\r\n{content}\r\n")
        });
        let body = parts.collect::<String>() + "--of-the-form--\r\n";
        self.content_type = Some("multipart/form-data; boundary=of-the-form");
        self.body = Some(body.into_bytes());
        self
    }

    fn path(&self, template: &str) -> String {
        let path = self
            .parameters
            .iter()
            .fold(template.to_owned(), |path, (name, value)| path.replace(&format!("{{{name}}}"), value));
        assert!(!path.contains('{'), "{path} lacks a parameter");
        path
    }

    fn target(&self, template: &str) -> String {
        let query = self.query.iter().map(|(name, value)| format!("{name}={}", escaped(value)));
        let query = query.collect::<Vec<_>>().join("&");
        let path = self.path(template);
        if query.is_empty() { path } else { format!("{path}?{query}") }
    }
}

fn escaped(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// What was read of a WebSocket, as text, and how it was closed.
#[derive(Default, Debug)]
pub struct Heard {
    pub text: String,
    pub close: Option<(u16, String)>,
}

impl<'w> Walk<'w> {
    pub fn new(world: &'w World, facts: &'w Facts, sandbox: &'w Made<'w>, prefix: String) -> Walk<'w> {
        let node = world.other_than(sandbox);
        Walk { world, facts, sandbox, node, prefix, outcomes: BTreeMap::new() }
    }

    /// Calls an operation, and judges the answer. What is none is null.
    pub fn call(&mut self, name: &str, call: Call) -> Value {
        let answer = self.answer(name, call);
        serde_json::from_str(&answer.body).unwrap_or(Value::Null)
    }

    pub fn answer(&mut self, name: &str, call: Call) -> Answer {
        let operation = self.facts.operation(name).clone();
        let method = operation.method.parse().expect("a method");
        let answer = self.send(method, &call.target(&operation.path), call);
        self.record(name, self.judged(&operation.success, &operation.answer, &answer));
        answer
    }

    fn judged(&self, success: &[u16], of: &str, answer: &Answer) -> Outcome {
        if !success.contains(&answer.status) {
            return match self.is_clear_503(answer) {
                true => Outcome::NeedsDesktop,
                false => Outcome::Failed(format!("{}: {}", answer.status, answer.body.trim())),
            };
        }
        let misfit = match of {
            "empty" if answer.status == 204 && !answer.body.is_empty() => Some("a 204 has a body".to_owned()),
            "empty" | "websocket" => None,
            "bytes" | "multipart" => answer.body.is_empty().then(|| "an empty body".to_owned()),
            of => match serde_json::from_str(&answer.body) {
                Ok(value) => self.facts.misfit(of, &value),
                Err(error) => Some(format!("{error}: {}", answer.body)),
            },
        };
        misfit.map_or(Outcome::Served, Outcome::Failed)
    }

    fn is_clear_503(&self, answer: &Answer) -> bool {
        let Ok(mut body) = serde_json::from_str::<Value>(&answer.body) else { return false };
        let says_what_to_do = body["message"].as_str().is_some_and(|message| message.contains("desktop"));
        // Clients take codes that they don't know.
        body["code"].take();
        answer.status == 503 && says_what_to_do && self.facts.misfit("ErrorResponse", &body).is_none()
    }

    pub fn send(&self, method: Method, target: &str, call: Call) -> Answer {
        let url = format!("{}{}{target}", self.world.cluster.node(self.node).http, self.prefix);
        let mut request = self.world.http.request(method, url).bearer_auth(&self.world.cluster.ready.api_key);
        request = request.header("x-daytona-sdk-version", "0.226.1");
        if let Some(content_type) = call.content_type {
            request = request.header("content-type", content_type);
        }
        if let Some(body) = call.body {
            request = request.body(body);
        }
        self.world.send(request)
    }

    pub fn record_status(&mut self, name: &str, success: u16, answer: &Answer) {
        self.record(name, self.judged(&[success], "bytes", answer));
    }

    /// Whatever failed first is what is told.
    pub fn record(&mut self, name: &str, outcome: Outcome) {
        let known = self.outcomes.entry(name.to_owned()).or_insert_with(|| outcome.clone());
        if matches!(outcome, Outcome::Failed(_)) && !matches!(known, Outcome::Failed(_)) {
            *known = outcome;
        }
    }

    /// What an answer must say beyond its model.
    pub fn check(&mut self, name: &str, holds: bool, seen: impl std::fmt::Debug) {
        if !holds {
            self.record(name, Outcome::Failed(format!("answered with something else: {seen:?}")));
        }
    }

    /// One that is not among the operations.
    pub fn extra(
        &mut self,
        name: &str,
        method: Method,
        target: &str,
        call: Call,
        success: u16,
        of: &str,
    ) -> Answer {
        let answer = self.send(method, target, call);
        self.record(name, self.judged(&[success], of, &answer));
        answer
    }

    pub fn socket(&mut self, name: &str, target: &str, say: Vec<Message>) -> Heard {
        self.converse(name, self.request(target), say, |_| false)
    }

    /// For a WebSocket of the toolbox.
    pub fn request(&self, target: &str) -> Request<()> {
        let base = self.world.cluster.node(self.node).http.replace("http://", "ws://");
        let mut request = format!("{base}{}{target}", self.prefix).into_client_request().unwrap();
        let bearer = format!("Bearer {}", self.world.cluster.ready.api_key);
        request.headers_mut().insert("authorization", bearer.parse().unwrap());
        request.headers_mut().insert("x-daytona-sdk-version", "0.226.1".parse().unwrap());
        request
    }

    /// For a WebSocket of a preview.
    pub fn preview_request(&self, label: &str, token: &str, target: &str) -> Request<()> {
        let base = self.world.cluster.node(self.node).http.replace("http://", "ws://");
        let mut request = format!("{base}{target}").into_client_request().unwrap();
        let host = format!("{label}.{}", self.world.cluster.ready.preview_domain);
        request.headers_mut().insert("host", host.parse().unwrap());
        request.headers_mut().insert("x-daytona-preview-token", token.parse().unwrap());
        request
    }

    /// Says all, hears all until the other end closes or enough was heard.
    pub fn converse(
        &mut self,
        name: &str,
        request: Request<()>,
        say: Vec<Message>,
        enough: impl Fn(&str) -> bool,
    ) -> Heard {
        let talk = async {
            let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
            for message in say {
                socket.send(message).await?;
            }
            let mut heard = Heard::default();
            while let Some(message) = socket.next().await {
                match message {
                    Ok(Message::Text(text)) => heard.text.push_str(&text),
                    Ok(Message::Binary(bytes)) => heard.text.push_str(&String::from_utf8_lossy(&bytes)),
                    Ok(Message::Close(frame)) => {
                        heard.close = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                    }
                    Ok(_) => {}
                    Err(_) if heard.close.is_some() => break,
                    Err(error) => return Err(error),
                }
                if enough(&heard.text) {
                    break;
                }
            }
            Ok(heard)
        };
        match self.world.block_on(async { tokio::time::timeout(SOCKET_DEADLINE, talk).await }) {
            Ok(Ok(heard)) => {
                self.record(name, Outcome::Served);
                heard
            }
            Ok(Err(Error::Http(answer))) => {
                let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                self.record(name, Outcome::Failed(format!("{}: {}", answer.status(), body.trim())));
                Heard::default()
            }
            Ok(Err(error)) => {
                self.record(name, Outcome::Failed(error.to_string()));
                Heard::default()
            }
            Err(_) => {
                self.record(name, Outcome::Failed(format!("not closed within {SOCKET_DEADLINE:?}")));
                Heard::default()
            }
        }
    }

    /// By the toolbox as any caller, not as a trial of it.
    pub fn run(&self, command: &str) -> String {
        let (code, said) = self.world.exec(self.node, self.sandbox, command);
        assert_eq!(code, 0, "{command}: {said}");
        said
    }

    pub fn expect_text(&mut self, name: &str, answer: &Value, field: &str, expected: &str) {
        let holds = answer[field] == json!(expected);
        self.check(name, holds, shortened(answer));
    }
}
