#!/bin/sh
# A finetuned model of question answering, twice as small a one for OpenVINO: rounded to 8 bits, and pruned besides.
#
#   sh examples/compression.sh MODEL TRAIN VALIDATION OUT [more parameters of finetune.run]
#
# MODEL is a model that was finetuned for question answering, a folder or, with a hub, an id such as
# distilbert-base-uncased-distilled-squad. TRAIN and VALIDATION are files of SQuAD or of its kin.
# Each folder OUT/*/openvino has backends.html, which says what INT8 costs and how fast it is on this machine.
set -eu
[ $# -ge 4 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
MODEL=$1 TRAIN=$2 VALIDATION=$3 OUT=$4
shift 4
TASK="--task question_answering"
[ -d "$MODEL" ] && FROM=--pytorch_model_path || FROM=--huggingface_id

python -m finetune.model_selector $TASK "$FROM" "$MODEL" --output_dir "$OUT/model"
python -m finetune.preprocess $TASK --model_selector_output "$OUT/model" --train_file_path "$TRAIN" \
    --validation_file_path "$VALIDATION" --max_seq_length 384 --doc_stride 128 --output_dir "$OUT/data"
TEACHER="$OUT/model/model"

# finetune NAME …: train in OUT/NAME, to a model in OpenVINO
finetune() {
    name=$1
    shift
    python -m finetune.run $TASK --model_selector_output "$OUT/model" --preprocess_output "$OUT/data" \
        --per_device_train_batch_size 8 --per_device_eval_batch_size 8 --learning_rate 3e-5 --metric_for_best_model f1 \
        --apply_qat true --quantization ptq --openvino_model_folder "$OUT/$name/openvino" \
        --pytorch_model_folder "$OUT/$name/pytorch" --mlflow_model_folder "$OUT/$name/mlflow" "$@"
}

# 1. Quantisation-aware training
finetune qat "$@"

# 2. Pruning and quantisation at once, taught by the model itself (JPQD)
finetune jpqd --apply_pruning true --pruning_ratio 0.4 --num_train_epochs 8 \
    --teacher_model_path "$TEACHER" --distillation_weight 0.9 "$@"

for name in qat jpqd; do
    python -m finetune.evaluation $TASK --preprocess_output "$OUT/data" --openvino_model_folder "$OUT/$name/openvino" \
        --evaluation_result "$OUT/$name/evaluation"
done
