import pytest

from cbemail.mime.html import html_to_text
from cbemail.outbox.expressions import (
    InvalidVariable,
    MissingVariable,
    TemplateError,
    TooMuch,
)
from cbemail.outbox.template import LONGEST, Template

ORDER = {"no": 7, "lines": [{"what": "Tea", "count": 2}, {"what": "<Milk>", "count": 1}]}
VARIABLES = {
    "name": "Ann",
    "n": 3,
    "price": 2.5,
    "yes": True,
    "no": False,
    "void": None,
    "nothing": "",
    "first-name": "Bo",
    "größe": "XL",
    "markup": "<b>'\"&",
    "braces": "{{ name }}{% if yes %}",
    "tags": ["a", "b"],
    "order": ORDER,
    "due": "2026-01-31",
}


def rendered(source: str, *, html: bool = False) -> str:
    return Template.compile(source, html=html).render(VARIABLES)


def refusal(source: str) -> str:
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$") as refused:
        Template.compile(source, html=False)
    return str(refused.value)


# ---- names and defaults


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("", ""),
        ("Dear {{ name }}, {{name}}!", "Dear Ann, Ann!"),
        ("{{\n name\t}}", "Ann"),
        ("{{\u00a0name\u00a0}}", "Ann"),
        ("{{ first-name }} {{ größe }}", "Bo XL"),
        ("{{ n }} {{ price }} {{ yes }} {{ no }}", "3 2.5 true false"),
        ("<{{ void }}>", "<>"),
        ('{{ name | default: "friend" }}', "Ann"),
        ('{{ nick | default: "friend" }}', "friend"),
        ("{{nick|default:'my \"friend\"'}}", 'my "friend"'),
        ("{{ void | default: 'x' }}{{ nothing | default: 'x' }}{{ no | default: 'x' }}", "xxx"),
        ("{{ n | default: 'x' }}", "3"),
        ("a { b } }} {c {d", "a { b } }} {c {d"),
    ],
)
def test_names_are_replaced_by_their_values(source: str, text: str):
    template = Template.compile(source, html=False)

    assert template.render(VARIABLES) == text
    assert not template.is_liquid


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ n }} {{ price }} {{ yes }}", "3 2.5 true"),
        ("<{{ void }}>", "<>"),
        ("{{ nick | default: 'x' }}{{ nothing | default: 'x' }}{{ no | default: 'x' }}", "xxx"),
        ("{{ braces }}", "{{ name }}{% if yes %}"),
    ],
)
def test_liquid_writes_values_as_the_short_way_does(source: str, text: str):
    template = Template.compile(source + "{% comment %}{% endcomment %}", html=False)

    assert template.is_liquid
    assert template.render(VARIABLES) == text == rendered(source)


def test_the_names_that_must_be_given_are_those_without_a_default():
    template = Template.compile("{{ a }}{{ b | default: 'x' }}{{ c }}{{ a }}", html=False)

    assert template.names == {"a", "c"}


def test_text_without_expressions_is_constant():
    assert Template.compile("Hello { there }", html=False).is_constant
    assert not Template.compile("{{ name }}", html=False).is_constant
    assert not Template.compile("{% if name %}x{% endif %}", html=False).is_constant


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ nick }}", "nick"),
        ("{{ now }}", "now"),
        ("{{ nick | upcase }}", "nick"),
        ("{{ name | append: nick }}", "nick"),
        ("{{ order.what }}", "order.what"),
        ("{{ nick.of.nobody }}", "nick"),
        ("{{ now.year }}", "now"),
        ("{% for tag in labels %}{% endfor %}", "labels"),
        ("{% for line in order.lines %}{{ line.price }}{% endfor %}", "line.price"),
        ("{% if nick %}{% else %}{{ nick }}{% endif %}", "nick"),
    ],
)
def test_an_unknown_variable_is_named(source: str, name: str):
    with pytest.raises(MissingVariable) as missing:
        rendered(source)

    assert missing.value.name == name
    assert missing.value.detail == f"The variable {name} is missing."


@pytest.mark.parametrize(
    "source", ["{{ tags }}", "{{ order }}", "{{ order.lines }}", "{{ tags | upcase }}"]
)
def test_a_list_or_an_object_is_not_written_as_python_writes_it(source: str):
    with pytest.raises(InvalidVariable, match=r"list or an object"):
        rendered(source)


# ---- Liquid


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if nick %}{{ nick }}{% else %}you{% endif %}", "you"),
        ("{% if nick == 'x' or nick > 3 %}a{% elsif n == 3 %}b{% endif %}", "b"),
        ("{% unless nick %}none{% endunless %}", "none"),
        ("{% case n %}{% when 3 %}three{% else %}other{% endcase %}", "three"),
        ("{{ order.no }} {{ order.lines[1].count }} {{ order['no'] }}", "7 1 7"),
        ("{% for l in order.lines %}{{ l.count }} {{ l.what }};{% endfor %}", "2 Tea;1 <Milk>;"),
        ("{% for i in (1..3) reversed %}{{ i }}{{ forloop.index }} {% endfor %}", "31 22 13 "),
        ("{{ name | upcase | append: '!' }}", "ANN!"),
        ("{{ nick | default: name }} {{ order.x | default: 'none' }}", "Ann none"),
        ("{{ tags | join: ', ' }} {{ tags | first }} {{ tags | size }}", "a, b a 2"),
        ("{{ 'a.b' | replace: '.', '-' }} {{ n | times: price }}", "a-b 7.5"),
        ("{{ due | date: '%d.%m.%Y' }}<{{ void | date: '%d' }}>", "31.01.2026<>"),
        ("{% assign who = name | downcase %}{{ who }}", "ann"),
        ("a {{- name -}} b", "aAnnb"),
        ("a {{ name-}} b", "a Annb"),
        ("{{ true }}<{{ nil }}>", "true<>"),
        ("{{ '{{' }} {# {{ braces }}", "{{ {# {{ name }}{% if yes %}"),
    ],
)
def test_conditions_loops_paths_and_filters_are_liquid(source: str, text: str):
    template = Template.compile(source, html=False)

    assert template.is_liquid
    assert template.render(VARIABLES) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ 7*7 }}",
        "{{().__class__.__mro__}}",
        "{{ ''.__class__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% if (1..1000000000) contains 'x' %}x{% endif %}",
        "{% assign x = (1..1000000000) | join: ',' %}",
        "{{ (1..1000000000) | last }}",
        "{{ first name }}",
        "{{ }}",
        "{{ name",
        "{% if name %}",
        "{% endif %}",
        "{% if name %}{% endfor %}",
        "{{ name }",
        "{% %}",
        "{{ name | no_such_filter }}",
        "{% include 'x' %}",
        "{% render 'x' %}",
        "{% raw %}{{ name }}{% endraw %}",
        "{% capture x %}<b>{% endcapture %}",
        "{% liquid echo name %}",
        "{{ name | safe }}",
        "{{ name" + " " * 600 + "}}",
        "{% if name %}" * 40 + "{% endif %}" * 40,
        "{{ name }}" * 2_001,
    ],
)
def test_what_is_no_template_is_refused_with_a_sentence(source: str):
    assert refusal(source)


def test_a_refusal_shows_the_expression_and_its_line():
    assert refusal("Dear {{ name }},\n\n{{ 7*7 }}") == (
        "The template expression {{ 7*7 }} in line 3 is not valid."
    )
    assert "{{ 7*7 }} in line 3" in refusal("{% if\nname %}{% endif %}\n{{ 7*7 }}")


# ---- values are values


def test_a_value_is_never_expanded_again():
    assert rendered("{{ braces }} {{ name }}") == "{{ name }}{% if yes %} Ann"
    assert rendered("{{ braces | append: '' }}") == "{{ name }}{% if yes %}"


ESCAPED = "&lt;b&gt;&#x27;&quot;&amp;"


@pytest.mark.parametrize(
    "source",
    [
        "{{ markup }}",
        '{{ nick | default: "<b>\'" }}',
        "{{ markup | strip }}",
        "{{ markup | escape }}",
        "{% for c in markup %}{{ c }}{% endfor %}",
        "{% assign m = markup %}{{ m }}",
        "{{ '' | append: markup }}",
    ],
)
def test_every_value_is_escaped_in_html_once(source: str):
    text = rendered(source, html=True)

    assert text in (ESCAPED, "&lt;b&gt;&#x27;")
    assert rendered("<i>{{ n }}</i>", html=True) == "<i>3</i>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ name.__class__ }}",
        "{{ order.__class__ }}",
        "{{ order['__class__'] }}",
        "{{ order.keys }}",
        "{{ tags.append }}",
        "{% for i in (1..2) %}{{ forloop.__class__ }}{% endfor %}",
    ],
)
def test_python_is_out_of_reach(source: str):
    with pytest.raises(MissingVariable):
        rendered(source)


# ---- what takes too long. No clock here: without its limit, each of these takes seconds or all memory


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in (1..1000000000) %}x{% endfor %}",
        "{% for i in (1..1000000000) reversed %}{% endfor %}",
        "{% for i in (1..99999999999999999999999) %}{% endfor %}",
        "{% for i in (1..many) limit: 1 %}{% endfor %}",
        "{% for i in (1..3000) %}{% for j in (1..3000) %}{% endfor %}{% endfor %}",
        "{% for i in (1..3000) %}{% endfor %}" * 100,
        "{% for i in list %}{{ long | upcase }}{% endfor %}",
        "{% for i in list %}{% for j in list offset: 999 %}{% endfor %}{% endfor %}",
        "{% assign x = long %}" + "{% assign x = x | append: x %}" * 40,
        "{% assign x = 'a' %}" + "{% assign x = x | replace: 'a', long %}" * 3,
        "{% assign x = long | truncate: 3 %}" * 60,
        "{{ long }}" * 300,
        "{{ long | strip }}" * 300,
    ],
)
def test_a_template_that_would_run_away_is_stopped(source: str):
    variables = {"many": 10**9, "list": list(range(1000)), "long": "x" * 60_000}

    with pytest.raises(TooMuch):
        Template.compile(source, html=False).render(variables)


@pytest.mark.parametrize(
    "source", ["{{ long | replace: 'x', long }}", "{{ long | split: '' | join: long }}"]
)
def test_a_filter_does_not_multiply_texts(source: str):
    template = Template.compile(source, html=False)

    with pytest.raises(TooMuch, match=r"filters make too long a text"):
        template.render({"long": "x" * 2_000})


@pytest.mark.parametrize(
    "source",
    [
        "{{ 99999999 | times: 99999999 }}",
        "{% assign x = 99999 %}" + "{% assign x = x | times: x %}" * 40 + "{{ x }}",
        "{{ 1 | divided_by: 0 }}",
        "{{ name | date: '%d' }}",
        "{{ name | times: name | divided_by: tags }}",
        "{% if name > 3 %}x{% endif %}",
    ],
)
def test_what_filters_and_comparisons_cannot_take_is_the_variables_fault(source: str):
    with pytest.raises(InvalidVariable):
        rendered(source)


def test_half_a_character_is_none():
    with pytest.raises(InvalidVariable, match=r"surrogate"):
        Template.compile("{{ x | upcase }}", html=False).render({"x": "\ud800"})


def test_a_text_may_be_long_but_not_endless():
    template = Template.compile("{{ x }}{{ x }}", html=False)
    half = "x" * (LONGEST // 2)

    assert len(template.render({"x": half})) == LONGEST
    with pytest.raises(TooMuch):
        template.render({"x": half + "x"})


def test_escaping_counts_as_length():
    with pytest.raises(TooMuch):
        Template.compile("{{ x }}", html=True).render({"x": "'" * (LONGEST // 5)})


def test_the_long_table_of_an_order_is_no_runaway():
    lines = [{"what": f"Thing {i}", "price": i / 2} for i in range(200)]
    source = (
        "{% for l in lines %}<tr><td>{{ l.what }}<td>{% if l.price > 5 %}{{ l.price }}{% endif %}"
        "{% endfor %}"
    )

    text = Template.compile(source, html=True).render({"lines": lines})

    assert text.count("<tr>") == 200


# ---- converting


def test_a_converted_template_puts_values_in_as_plain_text():
    template = Template.compile(
        "<p>Dear  {{ name | default: 'my  <friend>' }},<p>{{ a }}", html=True
    )

    converted = template.converted(html_to_text)

    assert converted is not None
    assert converted.render({"a": "<x>  y"}) == "Dear my  <friend>,\n\n<x>  y"
    assert converted.names == {"a"}


@pytest.mark.parametrize(
    "source", ["{% if a %}<p>{% endif %}", "\ue000{{ a }}", "\ue0000\ue001{{ a }}"]
)
def test_a_template_whose_values_shape_it_is_not_converted(source: str):
    assert Template.compile(source, html=True).converted(html_to_text) is None


def test_every_template_error_is_a_sentence():
    for source in ("{{ nick }}", "{{ tags }}", "{% for i in (1..99999999) %}{% endfor %}"):
        with pytest.raises(TemplateError, match=r"^[A-Z].*\.$"):
            rendered(source)
