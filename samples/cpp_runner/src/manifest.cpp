#include "manifest.h"

#include <sys/stat.h>

#include <fstream>
#include <iterator>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace ssm_runner {
namespace {

constexpr char kSchema[] = "ssm-export/bundle";
constexpr int kSchemaVersion = 1;
constexpr int64_t kLargestSize = int64_t{1} << 31;

FileEntry file_of(Json const& json) {
    FileEntry out;
    out.path = json.at("path").as_string("path");
    out.bytes = json.at("bytes").as_integer("bytes");
    out.sha256 = json.at("sha256").as_string("sha256");
    return out;
}

State state_of(Json const& json) {
    State out;
    out.name_in = json.at("name_in").as_string("name_in");
    out.name_out = json.at("name_out").as_string("name_out");
    std::string const& type = json.at("dtype").as_string("dtype");
    out.type = type_named(type);
    if (out.type == Type::other) {
        throw JsonError(text("state '", out.name_in, "' has the unknown type '", type, "'"));
    }
    if (Json const* const initial = json.find("initial_value")) {
        if (initial->as_number("initial_value") != 0) {
            throw JsonError(text("state '", out.name_in, "' does not begin with zeros"));
        }
    }
    auto const& shape = json.at("shape").as_array("shape");
    if (shape.empty() || shape.front().kind != Json::Kind::string) {
        throw JsonError(text("state '", out.name_in, "' has no batch axis in front"));
    }
    int64_t count = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) {
        int64_t const size = shape[axis].as_integer("shape");
        if (size < 1 || size > kLargestSize || (count *= size) > kLargestSize) {
            throw JsonError(text("state '", out.name_in, "' has an axis of ", size));
        }
        out.sizes.push_back(size);
    }
    return out;
}

Range range_of(Json const& profile, char const* axis, Range otherwise) {
    Json const* const found = profile.find(axis);
    if (found == nullptr) {
        return otherwise;
    }
    auto const& sizes = found->as_array(axis);
    if (sizes.size() != 3) {
        throw JsonError(text("the profile's '", axis, "' has no three sizes"));
    }
    Range const out{sizes[0].as_integer(axis), sizes[2].as_integer(axis)};
    if (out.smallest < 1 || out.largest < out.smallest || out.largest > kLargestSize) {
        throw JsonError(text("the profile's '", axis, "' is no range"));
    }
    return out;
}

EngineEntry engine_of(Json const& json) {
    EngineEntry out;
    out.form = json.at("form").as_string("form");
    out.target = json.at("target").as_string("target");
    out.kind = json.at("engine").as_string("engine");
    out.file = file_of(json.at("file"));
    std::string const module = out.kind == "tensorrt-rtx" ? "tensorrt_rtx" : out.kind;
    if (Json const* const version = json.at("versions").find(module)) {
        out.version = version->as_string(module);
    }
    out.platform = json.at("platform").as_string("platform");
    out.capability = json.at("compute_capability").as_string("compute_capability");
    out.batch = range_of(json.at("profile"), "batch", {1, 1});
    out.time = range_of(json.at("profile"), "time", {1, 1});
    if (Json const* const library = json.find("library")) {
        out.plugin_library = library->as_string("library");
    }
    return out;
}

void check_schema(Json const& json, std::string const& where) {
    std::string const& schema = json.at("schema").as_string("schema");
    size_t const at = schema.find('@');
    if (schema.substr(0, at) != kSchema || at == std::string::npos) {
        throw JsonError(text("its schema is '", schema, "'"));
    }
    int const version = std::atoi(schema.c_str() + at + 1);
    if (version > kSchemaVersion) {
        throw Error(kNewerSchema,
                    text("it has schema ", version, ", this program reads ", kSchemaVersion), where,
                    "build the program from the release that made the bundle");
    }
}

Manifest parse(std::string const& document, std::string const& folder, std::string const& where) {
    Json const json = Json::parse(document);
    if (json.kind != Json::Kind::object) {
        throw JsonError("it is no object");
    }
    check_schema(json, where);
    Manifest out;
    out.folder = folder;
    out.family = json.at("family").as_string("family");
    out.precision = json.at("precision").as_string("precision");
    out.state_type = json.at("state_dtype").as_string("state_dtype");
    out.all_logits = json.at("logits").as_string("logits") == "all";
    out.ragged = json.at("ragged").as_boolean("ragged");
    Json const& sizes = json.at("sizes");
    out.vocabulary = sizes.at("V").as_integer("V");
    out.layers = sizes.at("L").as_integer("L");
    if (out.vocabulary < 1 || out.vocabulary > kLargestSize) {
        throw JsonError(text("the vocabulary has ", out.vocabulary, " tokens"));
    }
    for (Json const& one : json.at("states").as_array("states")) {
        out.states.push_back(state_of(one));
    }
    for (Json const& one : json.at("engines").as_array("engines")) {
        out.engines.push_back(engine_of(one));
    }
    for (Json const& one : json.at("parity").as_array("parity")) {
        out.parity.push_back({one.at("kind").as_string("kind"), file_of(one.at("file"))});
    }
    if (Json const* const rounding = json.find("rounding")) {
        for (Json::Member const& kind : rounding->members) {
            if (Json const* const logits = kind.value.find("logits")) {
                out.rounding[kind.name] = logits->at("element").as_number("element");
            }
        }
    }
    return out;
}

}  // namespace

int64_t Manifest::state_bytes_per_row() const {
    int64_t out = 0;
    for (State const& state : states) {
        out += state.bytes_per_row();
    }
    return out;
}

Manifest read_manifest(std::string const& folder) {
    struct stat found {};
    if (stat(folder.c_str(), &found) != 0 || !S_ISDIR(found.st_mode)) {
        throw Error(kNoSuchPath, "there is no folder '" + folder + "'", "",
                    "give the folder that ssm-export export wrote");
    }
    std::string const where = folder + "/manifest.json";
    std::ifstream file(where, std::ios::binary);
    if (!file) {
        throw Error(kNotABundle, "the folder has no manifest.json", folder,
                    "give the folder that ssm-export export wrote");
    }
    std::string const document{std::istreambuf_iterator<char>(file), {}};
    try {
        return parse(document, folder, where);
    } catch (JsonError const& error) {
        throw Error(kNotABundle, text("it is no manifest of ssm-export: ", error.what()), where,
                    "copy the bundle again, whole, or export again");
    }
}

void check_file(Manifest const& manifest, FileEntry const& file, std::string const& fix) {
    std::string const path = manifest.path(file);
    struct stat found {};
    if (stat(path.c_str(), &found) != 0 || !S_ISREG(found.st_mode)) {
        throw Error(kMissingFile, "the manifest names '" + file.path + "', which is not there",
                    manifest.folder, "copy the bundle again, whole; or " + fix);
    }
    if (found.st_size != file.bytes) {
        throw Error(kHashMismatch,
                    text("'", file.path, "' has ", found.st_size, " bytes and not ", file.bytes),
                    manifest.folder, fix);
    }
    if (sha256_of(path) != file.sha256) {
        throw Error(kHashMismatch, "'" + file.path + "' was changed (its SHA-256 differs)",
                    manifest.folder, fix);
    }
}

}  // namespace ssm_runner
