#include "json.h"

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "error.h"

namespace ssm_runner {
namespace {

class JsonParser {
public:
    explicit JsonParser(std::string_view document) : text_(document) {}

    Json document() {
        Json const value = this->value(0);
        skip_space();
        if (at_ != text_.size()) {
            fail("something follows the document");
        }
        return value;
    }

private:
    static constexpr int kMaxDepth = 200;

    [[noreturn]] void fail(std::string const& what) const {
        throw JsonError(text(what, " (byte ", at_, " of ", text_.size(), ")"));
    }

    int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }

    void skip_space() {
        while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') {
            ++at_;
        }
    }

    bool accept(char wanted) {
        skip_space();
        bool const is = peek() == wanted;
        at_ += is ? 1 : 0;
        return is;
    }

    void expect(char wanted) {
        if (!accept(wanted)) {
            fail(peek() < 0 ? "the document ends too early" : text("expected '", wanted, "'"));
        }
    }

    Json word(std::string_view wanted, Json::Kind kind, bool boolean) {
        if (text_.substr(at_, wanted.size()) != wanted) {
            fail("an unknown word");
        }
        at_ += wanted.size();
        Json out;
        out.kind = kind;
        out.boolean = boolean;
        return out;
    }

    Json value(int depth) {
        if (depth > kMaxDepth) {
            fail("it is nested too deeply");
        }
        skip_space();
        switch (peek()) {
        case -1: fail("the document ends too early");
        case 'n': return word("null", Json::Kind::null, false);
        case 't': return word("true", Json::Kind::boolean, true);
        case 'f': return word("false", Json::Kind::boolean, false);
        case '"': {
            Json out;
            out.kind = Json::Kind::string;
            out.string = string();
            return out;
        }
        case '[':
        case '{': return container(depth);
        default: return number();
        }
    }

    Json container(int depth) {
        bool const is_object = text_[at_++] == '{';
        char const end = is_object ? '}' : ']';
        Json out;
        out.kind = is_object ? Json::Kind::object : Json::Kind::array;
        if (accept(end)) {
            return out;
        }
        do {
            if (!is_object) {
                out.items.push_back(value(depth + 1));
                continue;
            }
            skip_space();
            std::string name = string();
            expect(':');
            out.members.push_back({std::move(name), value(depth + 1)});
        } while (accept(','));
        expect(end);
        return out;
    }

    size_t digits() {
        size_t count = 0;
        for (; peek() >= '0' && peek() <= '9'; ++count) {
            ++at_;
        }
        return count;
    }

    Json number() {
        size_t const start = at_;
        at_ += peek() == '-' ? 1 : 0;
        bool const leading_zero = peek() == '0';
        size_t const whole = digits();
        if (whole == 0 || (leading_zero && whole > 1)) {
            fail("no value");
        }
        bool integer = true;
        if (peek() == '.') {
            ++at_;
            integer = false;
            if (digits() == 0) {
                fail("a number ends with its point");
            }
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            integer = false;
            at_ += peek() == '+' || peek() == '-' ? 1 : 0;
            if (digits() == 0) {
                fail("a number has no exponent");
            }
        }
        std::string const digits_of_it(text_.substr(start, at_ - start));
        Json out;
        out.real = std::strtod(digits_of_it.c_str(), nullptr);
        out.kind = Json::Kind::real;
        if (integer) {
            errno = 0;
            out.integer = std::strtoll(digits_of_it.c_str(), nullptr, 10);
            out.kind = errno == 0 ? Json::Kind::integer : Json::Kind::real;
        }
        return out;
    }

    uint32_t hex() {
        uint32_t out = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            int const c = peek();
            bool const digit = c >= '0' && c <= '9';
            int const letter = c | 0x20;
            if (!digit && (letter < 'a' || letter > 'f')) {
                fail("\\u wants four hexadecimal digits");
            }
            out = out * 16 + static_cast<uint32_t>(digit ? c - '0' : letter - 'a' + 10);
        }
        return out;
    }

    std::string escaped() {
        int const c = peek();
        ++at_;
        switch (c) {
        case '"': return "\"";
        case '\\': return "\\";
        case '/': return "/";
        case 'b': return "\b";
        case 'f': return "\f";
        case 'n': return "\n";
        case 'r': return "\r";
        case 't': return "\t";
        case 'u': return utf8();
        default: fail("an unknown escape");
        }
    }

    std::string utf8() {
        uint32_t point = hex();
        if (point >= 0xd800 && point < 0xdc00 && text_.substr(at_, 2) == "\\u") {
            at_ += 2;
            uint32_t const low = hex();
            if (low < 0xdc00 || low > 0xdfff) {
                fail("half a surrogate pair");
            }
            point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
        } else if (point >= 0xd800 && point <= 0xdfff) {
            fail("half a surrogate pair");
        }
        auto const byte = [](uint32_t bits) { return static_cast<char>(bits); };
        auto const tail = [&](int shift) { return byte(0x80 | ((point >> shift) & 0x3f)); };
        if (point < 0x80) {
            return {byte(point)};
        }
        if (point < 0x800) {
            return {byte(0xc0 | (point >> 6)), tail(0)};
        }
        if (point < 0x10000) {
            return {byte(0xe0 | (point >> 12)), tail(6), tail(0)};
        }
        return {byte(0xf0 | (point >> 18)), tail(12), tail(6), tail(0)};
    }

    std::string string() {
        if (peek() != '"') {
            fail(peek() < 0 ? "the document ends too early" : "expected a string");
        }
        std::string out;
        for (++at_; peek() != '"';) {
            int const c = peek();
            if (c < 0x20) {
                fail(c < 0 ? "the document ends too early" : "a control character in a string");
            }
            ++at_;
            if (c == '\\') {
                out += escaped();
            } else {
                out += static_cast<char>(c);
            }
        }
        ++at_;
        return out;
    }

    std::string_view text_;
    size_t at_ = 0;
};

}  // namespace

Json const& Json::of(Kind wanted, std::string_view name) const {
    static char const* const kNames[] = {"null",     "a boolean", "an integer", "a number",
                                         "a string", "an array",  "an object"};
    if (kind != wanted) {
        throw JsonError(text("'", name, "' is ", kNames[static_cast<int>(kind)], " and not ",
                             kNames[static_cast<int>(wanted)]));
    }
    return *this;
}

Json const* Json::find(std::string_view name) const {
    for (auto one = members.rbegin(); one != members.rend(); ++one) {
        if (one->name == name) {
            return &one->value;
        }
    }
    return nullptr;
}

Json const& Json::at(std::string_view name) const {
    Json const* const found = find(name);
    if (found == nullptr) {
        throw JsonError(text("there is no '", name, "'"));
    }
    return *found;
}

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

}  // namespace ssm_runner
