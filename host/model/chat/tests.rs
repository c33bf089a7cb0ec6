use super::*;

/// In the style of SmolLM2: a default system message, every turn framed alike.
const CHATML: &str = "\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// In the style of Llama 2: the system message goes into the first turn of the user, roles alternate.
const LLAMA2: &str = "\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}\
{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}\
{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}\
{% set content = system + message['content'] if loop.index0 == 0 else message['content'] %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

/// In the style of Llama 3.x: on lines of its own, with a date, optional tools and whitespace control.
const LLAMA3: &str = "
{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = '26 Jul 2024' %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if 'tool_calls' in message or not message.content.startswith('') %}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
";

fn talk() -> [Message; 3] {
    [Message::user(" Hi "), Message::new("assistant", "Hello."), Message::user("Bye")]
}

fn system() -> Message {
    Message::new("system", "Be brief.")
}

fn render(source: &str, messages: &[Message], answer: bool) -> Result<String, ModelError> {
    ChatTemplate::new(source, "<s>", "</s>").unwrap().render(messages, answer)
}

#[test]
fn chatml_adds_its_default_system_message_once() {
    let text = render(CHATML, &[Message::user("Hi")], true).unwrap();
    let default = "<|im_start|>system\nYou are helpful.<|im_end|>\n";
    assert_eq!(text, format!("{default}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
    let text = render(CHATML, &[system(), Message::user("Hi")], false).unwrap();
    assert_eq!(text, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

#[test]
fn llama_2_folds_the_system_message_and_refuses_disorder() {
    let text = render(LLAMA2, &talk(), true).unwrap();
    assert_eq!(text, "<s>[INST] Hi [/INST] Hello. </s><s>[INST] Bye [/INST]");
    let text = render(LLAMA2, &[system(), Message::user("Hi")], true).unwrap();
    assert_eq!(text, "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]");
    let error = render(LLAMA2, &talk()[1..], true).unwrap_err().to_string();
    assert!(error.starts_with("chat template: roles must alternate user/assistant"), "{error}");
}

#[test]
fn llama_3_controls_its_whitespace() {
    let turn =
        |role: &str, text: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>");
    let text = render(LLAMA3, &[system(), Message::user(" Hi ")], true).unwrap();
    let expected = [
        "<s>",
        &turn("system", "Today Date: 26 Jul 2024\n\nBe brief."),
        &turn("user", "Hi"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ];
    assert_eq!(text, expected.concat());
}

#[test]
fn blocks_are_trimmed_as_transformers_sets_them() {
    let source = "A\n    {% if true %}\nB\n    {% endif %}\nC\n";
    assert_eq!(render(source, &[], false).unwrap(), "A\nB\nC");
}

#[test]
fn python_methods_and_the_date() {
    let source =
        "{{ messages[0].content.split('</think>')[-1].lstrip('\\n') }}|{{ strftime_now('%Y') | length }}";
    assert_eq!(render(source, &[Message::user("a</think>\nb")], false).unwrap(), "b|4");
}

#[test]
fn training_marks_print_nothing() {
    let source =
        "{%- for m in messages %}{% generation %}\n{{ m.content }}{%- endgeneration -%}\n{% endfor %}";
    assert_eq!(render(source, &[Message::user("a"), Message::user("b")], false).unwrap(), "ab");
    assert_eq!(without_generation_tags("{% if a %} {%"), "{% if a %} {%");
}

#[test]
fn a_template_that_does_not_parse_is_an_error_with_its_line() {
    let error = ChatTemplate::new("a\n{% if %}", "", "").err().unwrap().to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn folders_hold_templates_in_three_ways() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let first = || ChatTemplate::from_dir(dir.path()).and_then(|t| t.render(&[], false));
    let none = first().unwrap_err().to_string();
    assert!(none.contains("the model has none") && none.contains("--chat"), "{none}");

    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<b>"}, "eos_token": "<e>", "chat_template":
        [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ bos_token + eos_token }}"}]}"#,
    );
    assert_eq!(first().unwrap(), "<b><e>");
    write("tokenizer_config.json", r#"{"bos_token": null, "chat_template": "one{{ bos_token }}"}"#);
    assert_eq!(first().unwrap(), "one");
    write("chat_template.jinja", "file");
    assert_eq!(first().unwrap(), "file");
    write("tokenizer_config.json", "{");
    assert!(matches!(first().unwrap_err(), ModelError::Corrupt { .. }));
}

#[test]
fn gguf_metadata_names_the_tokens() {
    let mut vocab =
        GgufVocab { tokens: vec!["<s>".into(), "</s>".into()], bos: Some(0), ..GgufVocab::default() };
    assert!(matches!(ChatTemplate::from_gguf(&vocab), Err(ModelError::Chat { .. })));
    vocab.chat_template = Some("{{ bos_token }}|{{ eos_token }}|".into());
    assert_eq!(ChatTemplate::from_gguf(&vocab).unwrap().render(&[], true).unwrap(), "<s>||");
}
