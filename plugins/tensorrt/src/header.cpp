#include "header.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "text.h"

namespace ssm_export {
namespace {

constexpr int kMaxRank = 8;
constexpr int kMaxThreads = 1024;
constexpr int kMaxImages = 4096;
constexpr size_t kMaxPersistent = size_t{1} << 30;

// The lines of a header, read in order, with the words of the one at hand.
class Lines {
public:
    explicit Lines(std::string_view text) : rest_(text) {
        if (text.empty() || text.back() != '\n') {
            fail("the header does not end with a line");
        }
        step();
    }

    bool is(std::string_view keyword) const { return !done_ && keyword_ == keyword; }
    bool done() const { return done_; }
    void step() {
        done_ = rest_.empty();
        if (done_) {
            return;
        }
        size_t const end = rest_.find('\n');
        line_ = words_ = rest_.substr(0, end);
        rest_.remove_prefix(end + 1);
        ++number_;
        keyword_ = word();
    }

    // The next word; `remainder` everything up to the end of the line.
    std::string_view word() {
        size_t const end = std::min(words_.find(' '), words_.size());
        std::string_view const found = words_.substr(0, end);
        if (found.empty()) {
            wrong("it ends too early, or has two blanks");
        }
        words_.remove_prefix(std::min(end + 1, words_.size()));
        return found;
    }
    std::string_view remainder() {
        std::string_view const all = words_;
        words_ = {};
        return all;
    }
    bool more() const { return !words_.empty(); }

    // The next word as an integer from `least` to `most`.
    template <typename Integer>
    Integer integer(Integer least, Integer most) {
        std::string_view const digits = word();
        Integer value{};
        auto const [stop, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), value);
        if (error != std::errc() || stop != digits.data() + digits.size() || value < least ||
            value > most) {
            wrong("'", digits, "' is no integer from ", least, " to ", most);
        }
        return value;
    }

    // The line is read: nothing may be left of it.
    void end() {
        if (more()) {
            wrong("'", words_, "' is too much");
        }
        step();
    }

    template <typename... Parts>
    [[noreturn]] void wrong(Parts const&... parts) const {
        fail("header line ", number_, ", '", line_.substr(0, 120), "': ", parts...);
    }

private:
    std::string_view rest_;
    std::string_view line_;
    std::string_view words_;
    std::string_view keyword_;
    int number_ = 0;
    bool done_ = false;
};

bool is_number(std::string_view word) {
    return !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
        return c >= '0' && c <= '9';
    });
}

Operand read_operand(Lines& lines, Section& section, bool may_name) {
    Operand operand;
    operand.port = lines.word();
    operand.type = lines.word();
    while (lines.more()) {
        Dimension dimension;
        std::string const word(lines.word());
        if (is_number(word)) {
            auto const [stop, error] =
                std::from_chars(word.data(), word.data() + word.size(), dimension.value);
            if (error != std::errc() || stop != word.data() + word.size()) {
                lines.wrong("'", word, "' is too large");
            }
        } else {
            auto& symbols = section.symbols;
            auto const found = std::find(symbols.begin(), symbols.end(), word);
            if (found == symbols.end() && !may_name) {
                lines.wrong("no input has a size called '", word, "'");
            }
            dimension.symbol = static_cast<int>(found - symbols.begin());
            if (found == symbols.end()) {
                symbols.push_back(word);
            }
        }
        operand.shape.push_back(dimension);
    }
    if (operand.shape.empty() || operand.shape.size() > kMaxRank) {
        lines.wrong("it has ", operand.shape.size(), " sizes, not 1 to ", kMaxRank);
    }
    lines.end();
    return operand;
}

Expression read_expression(Lines& lines, Section const& section) {
    try {
        return Expression::parse(lines.remainder(), section.symbols);
    } catch (Error const& error) {
        lines.wrong(error.what());
    }
}

Image read_image(Lines& lines, Section const& section) {
    constexpr int kMost = std::numeric_limits<int>::max();
    Image image;
    image.index = lines.integer(0, kMaxImages);
    image.entry = lines.word();
    std::string_view const kind = lines.word();
    if (kind != "cubin" && kind != "ptx") {
        lines.wrong("'", kind, "' is neither cubin nor ptx");
    }
    image.ptx = kind == "ptx";
    image.capability = lines.integer(10, 999);
    image.offset = lines.integer(size_t{0}, section.raw_size);
    image.bytes = lines.integer(size_t{1}, section.raw_size);
    image.shared_memory = lines.integer(0, kMost);
    image.threads = lines.integer(1, kMaxThreads);
    image.registers = lines.integer(0, kMost);
    image.extra_pointers = lines.integer(0, 16);
    if (image.bytes > section.raw_size - image.offset) {
        lines.wrong("the images are only ", section.raw_size, " bytes");
    }
    lines.end();
    return image;
}

// The position of what is called `name`, -1 where nothing is.
template <typename Items>
int index_of(Items const& items, std::string_view name, std::string Items::value_type::*key) {
    for (size_t i = 0; i < items.size(); ++i) {
        if (items[i].*key == name) {
            return static_cast<int>(i);
        }
    }
    return -1;
}

Argument read_argument(Lines& lines, Section const& section) {
    Argument argument;
    std::string_view const kind = lines.word();
    if (kind == "int") {
        argument.value = read_expression(lines, section);
    } else if (kind == "workspace") {
        argument.kind = Argument::Kind::kWorkspace;
        argument.index = index_of(section.workspaces, lines.word(), &Workspace::name);
    } else if (kind == "persistent") {
        argument.kind = Argument::Kind::kPersistent;
        argument.index = index_of(section.persistents, lines.word(), &Persistent::name);
    } else if (kind == "tensor") {
        std::string_view const port = lines.word();
        argument.index = index_of(section.outputs, port, &Operand::port);
        argument.kind = Argument::Kind::kOutput;
        if (argument.index < 0) {
            argument.index = index_of(section.inputs, port, &Operand::port);
            argument.kind = Argument::Kind::kInput;
        }
    } else {
        lines.wrong("'", kind, "' is no kind of argument");
    }
    if (argument.index < 0) {
        lines.wrong("there is no ", kind, " of this name");
    }
    lines.end();
    return argument;
}

Launch read_launch(Lines& lines, Section const& section) {
    Launch launch;
    launch.image = lines.integer(0, kMaxImages);
    if (std::none_of(section.images.begin(), section.images.end(),
                     [&](Image const& one) { return one.index == launch.image; })) {
        lines.wrong("there is no image ", launch.image);
    }
    lines.end();
    for (Expression& axis : launch.grid) {
        if (!lines.is("grid")) {
            fail("a launch of the header has no three grid lines");
        }
        axis = read_expression(lines, section);
        lines.end();
    }
    while (lines.is("argument")) {
        launch.arguments.push_back(read_argument(lines, section));
    }
    return launch;
}

Case read_case(Lines& lines, Section const& section) {
    Case made;
    made.when = read_expression(lines, section);
    lines.end();
    while (lines.is("launch")) {
        made.launches.push_back(read_launch(lines, section));
    }
    if (made.launches.empty()) {
        fail("a case of the header launches nothing");
    }
    if (!lines.is("end")) {
        lines.done() ? fail("the header ends inside of a case")
                     : lines.wrong("it is not known here, or not at this place");
    }
    lines.end();
    return made;
}

}  // namespace

void read_header(std::string_view text, Section& section) {
    Lines lines(text);
    if (!lines.is("op")) {
        lines.wrong("the first line must say the op");
    }
    section.op = lines.word();
    section.op_version = lines.integer(0, 1000000);
    lines.end();
    if (lines.is("made")) {
        section.made_by = lines.remainder();
        lines.end();
    }
    while (lines.is("attribute")) {
        Attribute attribute;
        attribute.name = lines.word();
        attribute.kind = lines.word();
        attribute.value = lines.remainder();
        if (attribute.kind != "int" && attribute.kind != "float" && attribute.kind != "string") {
            lines.wrong("'", attribute.kind, "' is no kind of attribute");
        }
        lines.end();
        section.attributes.push_back(std::move(attribute));
    }
    while (lines.is("input")) {
        section.inputs.push_back(read_operand(lines, section, true));
    }
    while (lines.is("output")) {
        section.outputs.push_back(read_operand(lines, section, false));
    }
    while (lines.is("workspace")) {
        Workspace workspace;
        workspace.name = lines.word();
        workspace.bytes = read_expression(lines, section);
        lines.end();
        section.workspaces.push_back(std::move(workspace));
    }
    while (lines.is("persistent")) {
        Persistent persistent;
        persistent.name = lines.word();
        persistent.bytes = lines.integer(size_t{1}, kMaxPersistent);
        lines.end();
        section.persistents.push_back(std::move(persistent));
    }
    while (lines.is("image")) {
        section.images.push_back(read_image(lines, section));
    }
    while (lines.is("case")) {
        section.cases.push_back(read_case(lines, section));
    }
    if (!lines.done()) {
        lines.wrong("it is not known here, or not at this place");
    }
    if (section.inputs.empty() || section.outputs.empty() || section.cases.empty()) {
        fail("the header lacks inputs, outputs or cases");
    }
}

}  // namespace ssm_export
