#include "sweep.hpp"

#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>

namespace nca {

namespace {

constexpr int kBandCells = 160; // a last tile that is part empty costs less than two in a hundred
constexpr int kBandRows = 64;   // where next to nothing fires

// Firing cells of a band that is filled row by row: all but the last row are either fewer than enough, or as
// many as can be in the rows that a cell looks at.
size_t cells_at_most(const Rule::Packed& rule, int width) {
    const std::ptrdiff_t before = (rule.radius - 1) * static_cast<std::ptrdiff_t>(width);
    return static_cast<size_t>(std::max<std::ptrdiff_t>(kBandCells, before) + width);
}

uint64_t work_of_cell(const Rule::Packed& rule) {
    uint64_t work = 0;
    for (const Matrix* matrix : {&rule.perceive, &rule.fc0, &rule.fc1})
        work += static_cast<uint64_t>(matrix->panels().depth) * matrix->panels().outputs;
    return work;
}

FireRow fire_row(const Fire& fire, uint64_t threshold, size_t member) {
    if (fire.masks)
        return {};
    return {{static_cast<uint32_t>(fire.seed), static_cast<uint32_t>(fire.seed >> 32)},
            0,
            fire.slices[member],
            static_cast<uint32_t>(fire.level) << 16 | fire.samples[member] << 20,
            threshold};
}

} // namespace

Image image_of(const Rule::Packed& rule, float* state, size_t count, int height, int width, const Fire& fire,
               size_t member) {
    const size_t cells = static_cast<size_t>(height) * width;
    return {state + member * cells * rule.channels,
            height,
            width,
            static_cast<size_t>(width) * rule.channels,
            fire.masks ? fire.masks + member * cells : nullptr,
            count * cells,
            fire_row(fire, rule.fire_threshold, member)};
}

void check_size(const Rule::Packed& rule, int height, int width) {
    if (height > kMaxSide || width > kMaxSide || cells_at_most(rule, width) > INT_MAX / 2)
        throw std::invalid_argument("state has an image of " + std::to_string(height) + " x " +
                                    std::to_string(width) + "; at most " + std::to_string(kMaxSide) +
                                    " rows and columns are possible, and fewer with a large kernel");
    if (rule.padding == Padding::reflect && (height <= rule.radius || width <= rule.radius))
        throw std::invalid_argument("state has an image of " + std::to_string(height) + " x " +
                                    std::to_string(width) + "; reflect padding with a kernel of " +
                                    std::to_string(2 * rule.radius + 1) + " needs at least " +
                                    std::to_string(rule.radius + 1) + " rows and columns");
}

bool fire_masks(uint8_t* masks, size_t count, int height, int width, int steps, double fire_rate,
                const Fire& fire, const Interrupt& interrupt) {
    constexpr int kColumns = 1 << 14; // whole blocks
    const Kernels& kernels = active_kernels();
    Watch watch(interrupt);
    Lookout lookout(watch, true);
    std::vector<uint8_t> mask(round_up(std::min(width, kColumns), kFireBlock));
    for (int step = 0; step < steps; ++step)
        for (size_t member = 0; member < count; ++member) {
            FireRow row = fire_row(fire, fire_threshold(fire_rate), member);
            row.word3 |= static_cast<uint32_t>(step);
            for (int y = 0; y < height; ++y) {
                row.y = static_cast<uint32_t>(y);
                for (int left = width; left > 0;) {
                    const int columns = std::min(left, kColumns);
                    row.first = static_cast<uint32_t>(width - left) / 4;
                    kernels.fire(row, columns, mask.data());
                    masks = std::copy_n(mask.data(), columns, masks);
                    left -= columns;
                    if (lookout.stop(columns * kMaskWork))
                        return false;
                }
            }
        }
    return true;
}

int inside(Padding padding, int position, int size) {
    if (position >= 0 && position < size)
        return position;
    if (padding == Padding::zero)
        return -1;
    return position < 0 ? -position : 2 * (size - 1) - position;
}

Sweep::Sweep(const Rule::Packed& rule, int width, const Lookout& lookout, int block)
    : rule_(rule), kernels_(*rule.kernels), side_(2 * rule.radius + 1), row_floats_(side_ * rule.channels),
      block_(block), cell_work_(work_of_cell(rule)), lookout_(lookout), mask_(round_up(width, kFireBlock)),
      neighbours_(static_cast<size_t>(side_) * block_), centers_(block_), joined_rows_(block_),
      buffer_rows_(block_), record_rows_(block_), hidden_rows_(block_), firing_(cells_at_most(rule, width)),
      before_perceived_(kernels_.pack ? rule.channels : 0),
      buffer_stride_(round_up(before_perceived_ + round_up(2 * rule.channels, kernels_.width), 16)),
      buffer_(static_cast<size_t>(block_) * buffer_stride_),
      hidden_(static_cast<size_t>(block_) * rule.fc0.panels().outputs), zeros_(row_floats_),
      border_(neighbours_.size() * row_floats_) {
    for (Band* band : {&band_, &before_}) {
        band->columns.resize(firing_.size());
        band->rows.reserve(kBandRows);
        band->changes = Buffer((firing_.size() + kernels_.cells) * rule.fc1.panels().outputs);
    }
    for (int i = 0; i < block_; ++i) {
        joined_rows_[i] = buffer_.data() + static_cast<size_t>(i) * buffer_stride_;
        buffer_rows_[i] = joined_rows_[i] + before_perceived_;
        hidden_rows_[i] = hidden_.data() + static_cast<size_t>(i) * rule.fc0.panels().outputs;
    }
    for (int dy = 0; dy < side_; ++dy)
        patches_.push_back({neighbours_.data() + static_cast<size_t>(dy) * block_, row_floats_});
}

bool Sweep::step(const Image& image, int first, int last, int step, const Edges& edges) {
    start(image, first, last, edges);
    before_.cells = 0;
    for (int y = first; y < last;) {
        y = fill_band(y, step);
        for (int begin = 0; begin < band_.cells; begin += block_) {
            const int end = std::min(begin + block_, band_.cells);
            fetch_ahead(begin, end);
            compute(begin, end);
            if (stop_after_cells(end - begin))
                return true;
        }
        add_changes(before_);
        std::swap(band_, before_);
        if (stop_after_masks(static_cast<size_t>(before_.last - before_.first) * image.width))
            return true;
    }
    add_changes(before_);
    return false;
}

// Asks for a share of the rows that the next band will be the first to read, while this one computes; not for
// those of other threads, which are writing them.
void Sweep::fetch_ahead(int begin, int end) const {
    constexpr size_t kLine = 16; // floats
    const int ahead = std::min(band_.last + rule_.radius, last_);
    const int rows = std::min(band_.last - band_.first, last_ - ahead);
    const size_t floats = rows * image_->row_floats;
    for (size_t i = floats * begin / band_.cells; i < floats * end / band_.cells; i += kLine)
        __builtin_prefetch(image_->row(ahead) + i, 1, 2);
}

void Sweep::start(const Image& image, int first, int last, const Edges& edges) {
    image_ = &image;
    edges_ = edges;
    first_ = first;
    last_ = last;
}

size_t Sweep::count(const Image& image, int step) {
    start(image);
    size_t cells = 0;
    for (int y = 0; y < image.height && !stop_after_masks(image.width); ++y) {
        const uint8_t* mask = row_mask(y, step);
        cells += image.width - std::count(mask, mask + image.width, 0);
    }
    return cells;
}

int Sweep::fill_band(int y, int step) {
    band_.rows.clear();
    band_.cells = 0;
    band_.first = y;
    const auto rows = [&] { return static_cast<int>(band_.rows.size()); };
    while (y < last_ && (rows() < rule_.radius || (band_.cells < kBandCells && rows() < kBandRows)))
        list_row(y++, step);
    return band_.last = y;
}

// Which cells of a row fire.
const uint8_t* Sweep::row_mask(int y, int step) {
    const Image& image = *image_;
    if (image.masks)
        return image.mask(step, y);
    FireRow row = image.fire;
    row.y = static_cast<uint32_t>(y);
    row.word3 |= static_cast<uint32_t>(step);
    kernels_.fire(row, image.width, mask_.data());
    return mask_.data();
}

// Appends the columns of the cells that fire in a row.
void Sweep::list_row(int y, int step) {
    band_.cells += kernels_.list(row_mask(y, step), image_->width, band_.columns.data() + band_.cells);
    band_.rows.push_back({y, band_.cells});
}

// Where the values that row y had before this step stand.
const float* Sweep::old_row(int y) const {
    const size_t size = image_->row_floats;
    if (y < first_)
        return edges_.above + (y - first_ + rule_.radius) * size;
    if (y >= last_)
        return edges_.below + (y - last_) * size;
    return image_->row(y);
}

size_t Sweep::Band::row_of(int cell) const {
    return std::upper_bound(rows.begin(), rows.end(), cell,
                            [](int i, const BandRow& row) { return i < row.end; }) -
           rows.begin();
}

// The neighbours of column x in a row, null outside the image, copied side by side where the image's border
// is near.
const float* Sweep::border_patch(const float* row, int x, int cell, int dy) {
    const std::ptrdiff_t channels = rule_.channels;
    if (!row)
        return zeros_.data();
    float* copy = border_.data() + static_cast<size_t>(dy * block_ + cell) * row_floats_;
    for (int dx = 0; dx < side_; ++dx) {
        const int column = inside(rule_.padding, x + dx - rule_.radius, image_->width);
        if (column < 0)
            std::fill_n(copy + dx * channels, channels, 0.0f);
        else
            std::copy_n(row + column * channels, channels, copy + dx * channels);
    }
    return copy;
}

// Points at the neighbours of cells begin .. end - 1; the cells that fill up the last tile repeat the last
// one.
void Sweep::point_at_neighbours(int begin, int end, int padded_end) {
    const int radius = rule_.radius, last_inside = image_->width - radius - 1;
    const std::ptrdiff_t channels = rule_.channels;
    band_.for_each_row(begin, end, [&](int first, int last, int y) {
        const int* columns = band_.columns.data();
        int inner_first = first, inner_last = last; // without those near the image's border
        while (inner_first < last && columns[inner_first] < radius)
            ++inner_first;
        while (inner_last > inner_first && columns[inner_last - 1] > last_inside)
            --inner_last;
        for (int dy = 0; dy < side_; ++dy) {
            const int neighbour = inside(rule_.padding, y + dy - radius, image_->height);
            const float* row = neighbour < 0 ? nullptr : old_row(neighbour);
            const float** patch = neighbours_.data() + static_cast<size_t>(dy) * block_;
            for (int i = first; i < inner_first; ++i)
                patch[i - begin] = border_patch(row, columns[i], i - begin, dy);
            for (int i = inner_first; i < inner_last; ++i)
                patch[i - begin] = row ? row + (columns[i] - radius) * channels : zeros_.data();
            for (int i = inner_last; i < last; ++i)
                patch[i - begin] = border_patch(row, columns[i], i - begin, dy);
        }
    });
    for (int i = end - begin; i < padded_end - begin; ++i)
        for (int dy = 0; dy < side_; ++dy) {
            const float** patch = neighbours_.data() + static_cast<size_t>(dy) * block_ + i;
            *patch = patch[-1];
        }
}

// What the band's cells begin .. end - 1 perceive, and their hidden layer; at most a block.
int Sweep::hide(int begin, int end) {
    const int cells = end - begin, tiles = (cells + kernels_.cells - 1) / kernels_.cells;
    point_at_neighbours(begin, end, begin + tiles * kernels_.cells);
    const float* const* middle = patches_[rule_.radius].rows;
    for (int i = 0; i < tiles * kernels_.cells; ++i)
        centers_[i] = middle[i] + rule_.radius * rule_.channels;
    if (recorded_states_) {
        kernels_.gather(centers_.data(), cells, rule_.channels, recorded_states_, rule_.channels);
        recorded_states_ += static_cast<size_t>(cells) * rule_.channels;
    }
    perceive(cells, tiles);
    Segment inputs[] = {{centers_.data(), rule_.channels}, perceived_};
    int segments = 2;
    if (before_perceived_ > 0) {
        kernels_.gather(centers_.data(), tiles * kernels_.cells, rule_.channels, buffer_.data(),
                        buffer_stride_);
        inputs[0] = {joined_rows_.data(), 3 * rule_.channels, buffer_stride_};
        segments = 1;
    }
    const Panels& fc0 = rule_.fc0.panels();
    kernels_.product(inputs, segments, tiles, fc0, {After::relu}, hidden_.data(), fc0.outputs);
    return tiles;
}

// Computes what the first cells of the block perceive, where that is recorded if it can be, or recalls it.
void Sweep::perceive(int cells, int tiles) {
    const int length = 2 * rule_.channels;
    const size_t floats = static_cast<size_t>(cells) * length;
    if (recalled_) {
        point_into_record(recalled_, cells, tiles);
        recalled_ += floats;
        return;
    }
    if (recorded_ && fits_into_record(cells)) {
        perceive(cells, tiles, recorded_, length);
        point_into_record(recorded_, cells, tiles);
    } else {
        perceive(cells, tiles, buffer_.data() + before_perceived_, buffer_stride_);
        perceived_ = {buffer_rows_.data(), length, buffer_stride_};
        if (recorded_)
            kernels_.gather(buffer_rows_.data(), cells, length, recorded_, length);
    }
    if (recorded_)
        recorded_ += floats;
}

void Sweep::perceive(int cells, int tiles, float* to, int stride) const {
    if (rule_.perception == Perception::sobel)
        kernels_.sobel(patches_.data(), cells, rule_.channels, to, stride);
    else
        kernels_.product(patches_.data(), side_, tiles, rule_.perceive.panels(), {}, to, stride);
}

// Whether that can be computed where it is recorded, and be read there: whole tiles of whole registers write
// nothing behind their end.
bool Sweep::fits_into_record(int cells) const {
    return cells % kernels_.cells == 0 && 2 * rule_.channels % kernels_.width == 0;
}

// Points at what the block's cells perceived; those that fill up the last tile repeat the last one.
void Sweep::point_into_record(const float* record, int cells, int tiles) {
    const int length = 2 * rule_.channels;
    for (int i = 0; i < cells; ++i)
        record_rows_[i] = record + static_cast<size_t>(i) * length;
    std::fill(record_rows_.begin() + cells, record_rows_.begin() + tiles * kernels_.cells,
              record_rows_[cells - 1]);
    perceived_ = {record_rows_.data(), length};
}

// The changes of the band's cells begin .. end - 1, at most a block.
void Sweep::compute(int begin, int end) {
    const int tiles = hide(begin, end);
    const Panels& fc1 = rule_.fc1.panels();
    const Segment hidden = {hidden_rows_.data(), rule_.hidden, rule_.fc0.panels().outputs};
    kernels_.product(&hidden, 1, tiles, fc1, {},
                     band_.changes.data() + static_cast<size_t>(begin) * fc1.outputs, fc1.outputs);
}

float* const* Sweep::firing(const Band& band) {
    band.for_each_cell(0, band.cells, [&](int cell, int y, int x) {
        firing_[cell] = image_->row(y) + static_cast<std::ptrdiff_t>(x) * rule_.channels;
    });
    return firing_.data();
}

void Sweep::add_changes(const Band& band) {
    kernels_.add(firing(band), 1, band.changes.data(), rule_.fc1.panels().outputs, rule_.input_channels,
                 rule_.channels, band.cells);
}

} // namespace nca
