"""Docker's templates for --format."""

from __future__ import annotations

import pytest

from pytest_sandbox.cli.go_template import FreeMap, Template, TemplateError

VALUE = {
    "ID": "abc",
    "Names": "web",
    "State": {"Running": True, "ExitCode": 0, "Error": ""},
    "Args": ["-c", "true"],
    "Created": None,
    "Config": {"Labels": FreeMap(a="1", b="2")},
    "Ports": FreeMap({"80/tcp": [{"HostPort": "8080"}], "53/udp": []}),
    "Label": {"a": "1"}.get,
}

RENDERED = [
    ("{{.ID}}", "abc"),
    ("{{.State.Running}} {{.State.ExitCode}}", "true 0"),
    ("{{ .ID }}-{{- .Names -}} -x", "abc-web-x"),
    (r"{{.ID}}\t{{.Names}}\n", "abc\tweb\n"),
    ("{{json .State}}", '{"Running":true,"ExitCode":0,"Error":""}'),
    ("{{.State | json}}", '{"Running":true,"ExitCode":0,"Error":""}'),
    ("{{json .Args}}{{json .Created}}", '["-c","true"]null'),
    ("{{.Args}} {{.Config.Labels}}", "[-c true] map[a:1 b:2]"),
    ('{{join .Args ","}}', "-c,true"),
    ("{{upper .ID}}{{lower .ID}}{{title .Names}}", "ABCabcWeb"),
    ("{{range .Args}}<{{.}}>{{end}}", "<-c><true>"),
    ("{{range $i, $a := .Args}}{{$i}}={{$a}} {{end}}", "0=-c 1=true "),
    ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}},{{end}}", "a=1,b=2,"),
    ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
    ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
    ("{{if .State.Error}}bad{{else if .State.Running}}good{{end}}", "good"),
    ("{{if and .State.Running (eq .ID `abc`)}}both{{end}}", "both"),
    ("{{if not .State.Error}}fine{{end}}", "fine"),
    ("{{with .State}}{{.Running}}{{end}}", "true"),
    ("{{with $s := .State}}{{$s.ExitCode}}{{$.ID}}{{end}}", "0abc"),
    ("{{$x := .ID}}{{$x}}", "abc"),
    ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
    ('{{index .Config.Labels "a"}}{{.Label "a"}}', "11"),
    ("{{.Config.Labels.missing}}", "<no value>"),
    ("{{len .Args}}{{slice .ID 0 2}}{{truncate .ID 1}}", "2aba"),
    ('{{index (split "a/b" "/") 1}}', "b"),
    ('{{println .ID 1 "x"}}', "abc 1 x\n"),
    ("{{/* a comment */}}{{true}}{{nil}}", "true<no value>"),
    ("a literal { brace }", "a literal { brace }"),
]


@pytest.mark.parametrize(("text", "expected"), RENDERED, ids=[one[0] for one in RENDERED])
def test_it_renders_as_go(text, expected):
    """The supported part of Go's templates gives Go's output."""
    assert expected == Template(text).render(VALUE | {"Nothing": []})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{.Name}}", "there is no field .Name; did you mean .Names?; accepted: .ID, .Names"),
        ("{{.State.Runing}}", "there is no field .Runing; did you mean .Running?"),
        ("{{.ID.x}}", "there is no field .x in abc, which has no fields"),
        ("{{frobnicate .ID}}", "there is no function 'frobnicate'; accepted: and, "),
        ("{{.ID", "an action is not closed"),
        (".ID}}", "an action is not closed"),
        ("{{if .ID}}", "{{if .ID}} has no {{end}}"),
        ("{{end}}", "{{end}} has no beginning"),
        ("{{range .ID}}{{end}}", "range needs a list or a map, not abc"),
        ("{{index .Args 7}}", "index 7: [-c true] has no such item"),
        ('{{.ID "x"}}', "abc takes no arguments"),
        ("{{upper .State}}", "upper map["),
        ("{{(.ID}}", "a parenthesis is not closed"),
        ("{{.ID)}}", "')' is not expected"),
        ("{{$y}}", "there is no variable $y"),
        ("{{}}", "a value is missing"),
        ("{{slice .ID 2 9}}", "slice 2 9: out of range of abc"),
        ("{{join .Args}}", "join [-c true]: "),
    ],
)
def test_an_error_names_what_is_wrong(text, said):
    """An invalid template, or an unknown field, is one error that says what is accepted."""
    with pytest.raises(TemplateError) as raised:
        Template(text).render(VALUE)
    assert said in str(raised.value)


def test_values_cannot_control_the_terminal():
    """Control characters of values are escaped; those of the template are not."""
    assert "\ta\\x1b[2Jb" == Template("\t{{.}}").render("a\x1b[2Jb")
    assert '"a\\u001b"' == Template("{{json .}}").render("a\x1b")
