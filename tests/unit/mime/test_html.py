import re

import pytest

from cbemail.mime import limits
from cbemail.mime.html import html_to_text, sanitise, text_to_html
from cbemail.mime.markup import balance

LINK = 'target="_blank" rel="noopener noreferrer nofollow"'


def shown(html: str, **cid_urls: str) -> str:
    return sanitise(html, cid_urls=cid_urls)


# ---- sanitise


@pytest.mark.parametrize(
    "html",
    [
        "<script>alert(1)</script>",
        "<scr<script>ipt>alert(1)</scr</script>ipt>",
        "<img src=x onerror=alert(1)>",
        "<svg><script>alert(1)</script></svg>",
        "<svg onload=alert(1)>",
        "<svg><style><img src=x onerror=alert(1)></style></svg>",
        '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
        '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
        "<iframe srcdoc='<script>alert(1)</script>'>",
        "<a href='javascript:alert(1)'>x</a>",
        "<a href=' java\tscript:alert(1)'>x</a>",
        "<a href='&#106;avascript:alert(1)'>x</a>",
        "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
        "<a href='vbscript:x'>x</a>",
        "<form action=//evil><input name=q></form>",
        "<object data=//evil></object><embed src=//evil>",
        "<meta http-equiv=refresh content='0;url=//evil'>",
        "<link rel=prefetch href=//evil><base href=//evil>",
        "<style>@import '//evil'; p { background: url(//evil) }</style>",
        "<p style='background:url(//evil)'>x</p>",
        "<p style='background:u\\72l(//evil)'>x</p>",
        "<p style='list-style-image:url(//evil);content:url(//evil)'>x</p>",
        "<p style='background:image-set(\"//evil\" 1x)'>x</p>",
        "<p style='color:red;background:URL (//evil)'>x</p>",
        "<p style='width:expression(alert(1))'>x</p>",
        "<p style='font-family:\"a;background:url(//evil)\"'>x</p>",
        "<img src=http://evil/x.png srcset='//evil 2x' longdesc=//evil>",
        "<img src=//evil/x.png><img src=/api/sessions><img src=x.png>",
        "<img src='data:image/svg+xml;base64,AAAA'>",
        "<table background=//evil><td background=//evil>x</td></table>",
        "<video poster=//evil><source src=//evil></video><audio src=//evil>",
        "<blockquote cite=//evil>x</blockquote><q cite=//evil>x</q>",
        "<a href=/api/sessions ping=//evil>x</a><a href=//evil>x</a>",
        "<div style='position:fixed;z-index:9'>x</div>",
        "<div id=x name=y class=z onclick=alert(1)>x</div>",
    ],
)
def test_nothing_runs_and_nothing_loads(html: str):
    clean = shown(html)

    tags = re.sub(r' title="[^"]*"', "", "".join(re.findall(r"<[^>]*>", clean)))  # a title is text
    bad = (
        r"script|onerror|onload|onclick|evil|/api|url|svg|math|style>|position|alert|src=|id=|href"
    )
    assert not re.search(bad, tags, re.IGNORECASE), clean
    assert shown(clean) == clean


def test_links_keep_their_address_and_open_elsewhere():
    assert shown('<a href="https://x.y/?a=1&amp;b" target="_top">x</a>') == (
        f'<a {LINK} href="https://x.y/?a=1&amp;b">x</a>'
    )
    assert shown("<a href=MAILTO:a@b.c>x</a>") == f'<a {LINK} href="MAILTO:a@b.c">x</a>'


def test_text_that_looks_like_a_link_stays_text():
    assert shown("&lt;a href=x&gt;") == "&lt;a href=x&gt;"


def test_images_of_the_message_are_shown_from_where_they_are_served():
    url = "/api/mailbox/messages/7/attachments/2?folder=a&b"

    clean = sanitise(
        '<img src="CID:logo%40x" alt="Logo"><img src="cid:gone">', cid_urls={"logo@x": url}
    )

    assert (
        clean == '<img src="/api/mailbox/messages/7/attachments/2?folder=a&amp;b" alt="Logo"><img>'
    )
    assert sanitise(clean, cid_urls={"logo@x": url}) == clean


def test_a_small_data_image_stays_and_a_large_one_goes():
    small = "data:image/png;base64," + "A" * 400

    assert small in shown(f'<img src="{small}">')
    assert shown(f'<img src="{small + "A" * limits.DATA_IMAGE}">') == "<img>"


def test_style_keeps_what_only_looks():
    clean = shown(
        '<p style="color: RGB(1,2,3); position: fixed; margin-left: 4px; behavior: x">x</p>'
    )

    assert "color" in clean
    assert "margin-left" in clean
    assert "position" not in clean


@pytest.mark.parametrize(
    ("html", "balanced"),
    [
        ("<p>a<p>b<div>c</p>d", "<p>a</p><p>b</p><div>cd</div>"),
        ("<b><i>x</b>y</i>", "<b><i>x</i></b>y"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
        (
            "<table><tr><td>a<td>b<tr><td>c</table>",
            "<table><tbody><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></tbody></table>",
        ),
        (
            "<div><table><td></div>x</table>y",
            "<div><table><tbody><tr><td>x</td></tr></tbody></table>y</div>",
        ),
        (
            "<table><col><tbody><td>x",
            "<table><colgroup><col></colgroup><tbody><tr><td>x</td></tr></tbody></table>",
        ),
        ("<table><b>x<tr><td>y</table>", "<table>x<tbody><tr><td>y</td></tr></tbody></table>"),
        ("<td>x</td></p></b>", "x"),
        ("<a href=1>x<a href=2>y", "<a href=1>x</a><a href=2>y</a>"),
        ("<h1>a<h2>b", "<h1>a</h1><h2>b</h2>"),
        ("<dl><dt>a<dd>b<dt>c", "<dl><dt>a</dt><dd>b</dd><dt>c</dt></dl>"),
        ('<div title="</div>">x', '<div title="</div>">x</div>'),
        ("a<!-- </div> <b> -->b<!-->c<!x>d<?y>e</3>f", "abcdef"),
        ("1 < 2 <<b>", "1 &lt; 2 &lt;<b></b>"),
        ("<<foo>b onclick=x>", "&lt;b onclick=x>"),
        ("<pre>\n\r\n&#10; x</pre>", "<pre> x</pre>"),
        ("a<script>b</script >c<style>d", "ac"),
        ("<svg><b>a</svg>b<svg>c", "bc"),
        ("x<b title=", "x"),
    ],
)
def test_markup_is_balanced(html: str, balanced: str):
    assert balance(html) == balanced


def test_elements_beyond_the_depth_are_left_out_and_their_text_is_not():
    html = balance("<div>" * 10_000 + "deep")

    assert html == "<div>" * limits.HTML_DEPTH + "deep" + "</div>" * limits.HTML_DEPTH


@pytest.mark.parametrize(
    "tag", ["div", "b", "p><font color=red", "table><td", "ul><li", "blockquote", "svg"]
)
def test_a_long_run_of_open_elements_is_read_to_its_end(tag: str):
    """An HTML parser alone takes from seconds to hours on most of these; the suite would be seen to hang."""
    html = f"<{tag}>x" * (limits.HTML // len(f"<{tag}>x"))

    assert "x" in shown(html)
    assert "x" in html_to_text(html) or tag == "svg"


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<a ",
        "<!",
        "<!--",
        '<a b="',
        "<a x=",
        "<style ",
        "</b>",
        "&",
        "&nbsp;",
        "\xa0",
        "<b><i></b></i>",
    ],
)
def test_a_long_run_of_markup_is_read_to_its_end(unit: str):
    html = unit * (limits.HTML // len(unit))

    assert "<script" not in shown(html)
    assert len(html_to_text(html)) <= 8 * limits.HTML


def test_a_hundred_thousand_attributes_are_dropped():
    assert balance("<p " + " ".join(f"a{n}=1" for n in range(100_000)) + ">x") == "<p>x</p>"


def test_what_is_too_large_is_shown_as_its_text():
    clean = shown("<p>a &amp; b</p><script>x</script>" + "<b>c</b>" * limits.HTML)

    assert clean.startswith("<div>a &amp; b<br>\n<br>\nccc")


# ---- text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("<p>Hello\n  <b> big </b>world</p>", "Hello big world"),
        ("<p>a</p><p>b<br>c<br><br>d</p>", "a\n\nb\nc\n\nd"),
        ("<div>a</div><div><br></div><div>b</div>", "a\n\nb"),
        ("<div>a</div><div>&nbsp;</div><div>&nbsp; b&nbsp;</div>", "a\n\n  b"),
        ("<div><div>a</div></div><div>b</div>", "a\nb"),
        ("<ul><li>a<li>b<ol><li>c<li>d</ol></ul>e", "- a\n- b\n  1. c\n  2. d\n\ne"),
        ("x<blockquote>q<blockquote>r</blockquote></blockquote>y", "x\n\n> q\n>\n> > r\n\ny"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3"),
        ('<a href="https://x.y/z">click</a>.', "click (https://x.y/z)."),
        ('<a href="https://x.y/">https://x.y</a>', "https://x.y"),
        ('<a href="mailto:a@b.c">Ann</a>', "Ann (a@b.c)"),
        ('<a href="mailto:a@b.c">a@b.c</a>', "a@b.c"),
        ('<a href="javascript:x">y</a><a href="#z">z</a>', "yz"),
        ('<a href="https://x.y/z"><img alt="Shop"></a>', "Shop (https://x.y/z)"),
        ('<a href="https://x.y/z"><img></a>', ""),
        ("<pre>a\n  b\n\nc</pre>d", "a\n  b\n\nc\n\nd"),
        ("a<hr>b", "a\n--------------------\nb"),
        ("<title>t</title><style>s</style><script>x</script>a<!-- c -->", "a"),
        ("&lt;b&gt; &amp;amp; &nbsp;x", "<b> &amp;  x"),
        (f"&#{'9' * 5000};&#0;&#xD800;", "\ufffd\ufffd\ufffd"),
    ],
)
def test_html_becomes_readable_text(html: str, text: str):
    assert html_to_text(html) == text


def test_text_becomes_html_that_shows_it():
    assert text_to_html("a < b & c\n  d") == "<div>a &lt; b &amp; c<br>\n&nbsp; d</div>"
